"""Device functions of the kernels: index arithmetic, precision, epilogues, and the traversal of tensors."""
