"""Benchmarks, compile reports, the commands of the Makefile, documents, and the rules for the sources."""
