"""How kernels are started: the interpreter, launches, operators of torch, the launch cache, tiles."""
