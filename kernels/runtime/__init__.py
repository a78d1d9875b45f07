"""Runtime of the kernels: interpreter, launches, torch operators, launch cache, tiles."""
