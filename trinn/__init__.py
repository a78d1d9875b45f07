"""trinn: torch.nn for convolutional networks, on hand-written Triton kernels."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the folders stand beside this one; installed, they lie inside it.
_checkout = Path(__file__).resolve().parent.parent
if not Path(__file__).with_name("kernels").is_dir():
    __path__.append(str(_checkout))
