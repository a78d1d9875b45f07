"""The kernels and their launchers: what runs on the GPU, and how it is started. No autograd, no nn.Module.

`launchers` has the launchers by name. Each is also an opaque torch operator, `torch.ops.trinn.<name>`; `ops` calls these.
"""

import os
import sys

import torch

# Without a GPU Triton can only interpret. It reads the variable when it is imported, so this comes before the kernels.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Each of these registers its operators.
from trinn.kernels import (  # noqa: E402, F401
    antialias2d,
    batchnorm2d,
    conv2d,
    conv2d_fused,
    linear,
    max_unpool2d,
    pad2d,
    pool2d,
    reduce,
    relu,
    statistics2d,
    upsample2d,
)
from trinn.kernels.launch import hash_device_functions  # noqa: E402
from trinn.kernels.op import launchers, library, ops  # noqa: E402
from trinn.kernels.vmap import register_vmap  # noqa: E402

__all__ = ["launchers", "ops"]

register_vmap(library)
hash_device_functions([module for name, module in sorted(sys.modules.items()) if name.startswith("trinn.kernels.")])
