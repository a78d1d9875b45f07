"""Whether kernels are interpreted: decided here, before one is written, whoever imported Triton first."""

import importlib
import os
import sys
import warnings
from typing import Any

import torch


def _reason() -> str:
    """What decides. Triton is told to interpret where torch sees no GPU and the user has not said otherwise."""
    if "TRITON_INTERPRET" in os.environ:
        return f"TRITON_INTERPRET={os.environ['TRITON_INTERPRET']} is set"
    if torch.cuda.is_available():
        return "torch sees a GPU"
    if "triton" in sys.modules and sys.modules["triton"].runtime.driver._active is not None:
        return "Triton has compiled for another device already"
    os.environ["TRITON_INTERPRET"] = "1"  # read whenever Triton asks, also by processes that this one starts
    return "torch sees no GPU"


REASON = _reason()
triton: Any = importlib.import_module("triton")  # by now it knows
INTERPRETED: bool = triton.knobs.runtime.interpret

# Imported before, it has prepared for its compiler what it wrote in its own language, `tl.sum` and the like.
if INTERPRETED and isinstance(triton.language.sum, triton.JITFunction):
    for _module in (triton.language.standard, triton.language.random, triton.language):
        importlib.reload(_module)

# Where kernels can run on no device, what a user has to know; else empty.
NOWHERE = ""
if not INTERPRETED and not torch.cuda.is_available():
    NOWHERE = (
        f"trinn cannot compute here: torch sees no GPU, and Triton does not interpret kernels on the CPU, since {REASON}; "
        "set TRITON_INTERPRET=1 before trinn is imported"
    )
    warnings.warn(NOWHERE, stacklevel=2)
