"""Decides whether Triton interprets kernels: before any kernel is defined, even if the user imported Triton earlier."""

import importlib
import os
import sys
import warnings
from typing import Any

import torch

from .interpreter_caches import add_caches
from .triton_internals import has_driver, is_supported, redefine_for_interpreter


def _decide() -> str:
    """Turn the interpreter on if torch finds no GPU and the user has not decided otherwise. Return the reason, for messages."""
    if "TRITON_INTERPRET" in os.environ:
        return f"TRITON_INTERPRET={os.environ['TRITON_INTERPRET']} is set"
    if torch.cuda.is_available():
        return "torch sees a GPU"
    if "triton" in sys.modules and has_driver(sys.modules["triton"]):
        return "Triton has compiled for another device already"
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it at every use; child processes inherit it
    return "torch sees no GPU"


REASON = _decide()
triton: Any = importlib.import_module("triton")  # after TRITON_INTERPRET is set
INTERPRETED: bool = triton.knobs.runtime.interpret
if INTERPRETED:
    redefine_for_interpreter(triton)  # if the user imported Triton before, for the compiler
    if is_supported(triton.__version__):
        add_caches()

# Warning and error message if kernels can run nowhere, neither on a GPU nor in the interpreter; empty if they can.
NO_DEVICE = ""
if not INTERPRETED and not torch.cuda.is_available():
    NO_DEVICE = (
        f"trinn cannot compute here: torch sees no GPU, and Triton does not interpret kernels on the CPU, since {REASON}; "
        "set TRITON_INTERPRET=1 before trinn is imported"
    )
    warnings.warn(NO_DEVICE, stacklevel=2)


def unfit_interpreter(triton_version: str, numpy_version: str) -> str:
    """Why this version of Triton cannot interpret with this NumPy, and the remedy; empty if it can."""
    triton_minor, numpy_minor = (tuple(map(int, version.split(".")[:2])) for version in (triton_version, numpy_version))
    if triton_minor >= (3, 7) or numpy_minor < (2, 4):
        return ""
    return (
        f"the interpreter of Triton {triton_version} does not work with NumPy {numpy_version}: "
        "install numpy<2.4, or Triton 3.7 or newer"
    )


# Error message of every launch if the interpreter does not work; empty if it does, and for compiled kernels, without NumPy.
UNFIT_NUMPY = unfit_interpreter(triton.__version__, importlib.import_module("numpy").__version__) if INTERPRETED else ""
