"""The operators: a file for each, and files for properties of all of them."""
