"""trinn: torch.nn for convolutional networks, on hand-written Triton kernels."""

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout, kernels/, layers/ and models/ are next to this folder; in an installed package they are inside it.
_checkout = Path(__file__).resolve().parent.parent
if not Path(__file__).with_name("kernels").is_dir():
    __path__.append(str(_checkout))

_submodules = ("kernels", "layers", "models")
# For each public function, its module in trinn.layers.
_functions = {
    "convert": "convert", "revert": "convert", "report": "report", "patched": "patched", "compile_backend": "backend",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """A submodule or function, imported at its first use, because importing torch takes seconds."""
    if name in _submodules:
        return importlib.import_module(f"trinn.{name}")
    if name in _functions:
        return getattr(importlib.import_module(f"trinn.layers.{_functions[name]}"), name)
    raise AttributeError(f"module 'trinn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_submodules, *_functions})
