"""2-D convolution: passes.py has its launchers, fused.py those of a convolution and what follows it."""

from . import fused, passes

__all__ = ["fused", "passes"]
