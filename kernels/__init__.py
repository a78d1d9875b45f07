"""The kernels and their launchers: what runs on the GPU, and how it is started. No autograd, no nn.Module.

Each launcher is also an opaque torch operator, `torch.ops.trinn.<name>`; `ops` is that namespace.
"""

import os

import torch

# Without a GPU Triton can only interpret. It reads the variable when it is imported, so this comes before the kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from trinn.kernels.conv2d import conv2d_dgrad, conv2d_fprop, conv2d_wgrad  # noqa: E402

ops = torch.ops.trinn

__all__ = [
    "conv2d_dgrad",
    "conv2d_fprop",
    "conv2d_wgrad",
    "ops",
]
