"""2-D convolution: passes.py has its launchers; fused.py has the launchers of a convolution fused with the next operator."""

from . import fused, passes

__all__ = ["fused", "passes"]
