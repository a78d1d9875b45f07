"""2-D convolution: passes.py has its launchers; fused.py has the launchers of a convolution fused with the next operator."""

from . import fused, passes  # noqa: F401  # each registers its operators
