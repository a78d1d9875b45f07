"""What kernels call: index arithmetic, precision, epilogues, and the order in which programs walk through tensors."""
