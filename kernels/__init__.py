"""The kernels and their launchers: what runs on the GPU, and how it is started. No autograd, no nn.Module.

Each launcher is also an opaque torch operator, `torch.ops.trinn.<name>`; `ops` calls these.
"""

import os
import sys

import torch

# Without a GPU Triton can only interpret. It reads the variable when it is imported, so this comes before the kernels.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from trinn.kernels.antialias2d import antialias2d_backward, antialias2d_forward  # noqa: E402
from trinn.kernels.batchnorm2d import (  # noqa: E402
    batchnorm2d_add_relu,
    batchnorm2d_backward,
    batchnorm2d_fold,
    batchnorm2d_forward,
    batchnorm2d_relu_sums,
    batchnorm2d_sums,
)
from trinn.kernels.conv2d import conv2d_dgrad, conv2d_fprop, conv2d_wgrad  # noqa: E402
from trinn.kernels.conv2d_fused import conv2d_affine, conv2d_relu_max_pool2d, conv2d_statistics  # noqa: E402
from trinn.kernels.conv_transpose2d import (  # noqa: E402
    conv_transpose2d_dgrad,
    conv_transpose2d_fprop,
    conv_transpose2d_wgrad,
)
from trinn.kernels.launch import hash_device_functions  # noqa: E402
from trinn.kernels.linear import linear_dgrad, linear_fprop, linear_relu, linear_wgrad  # noqa: E402
from trinn.kernels.max_unpool2d import max_unpool2d_add, max_unpool2d_backward, max_unpool2d_forward  # noqa: E402
from trinn.kernels.op import library, ops  # noqa: E402
from trinn.kernels.pad2d import pad2d_backward, pad2d_forward  # noqa: E402
from trinn.kernels.pool2d import (  # noqa: E402
    avg_pool2d_backward,
    avg_pool2d_forward,
    max_pool2d_backward,
    max_pool2d_forward,
    max_pool2d_pick,
)
from trinn.kernels.reduce import channel_sum  # noqa: E402
from trinn.kernels.relu import relu_, relu_backward, relu_forward  # noqa: E402
from trinn.kernels.statistics2d import (  # noqa: E402
    batchnorm2d_merge,
    batchnorm2d_statistics,
    batchnorm2d_update,
)
from trinn.kernels.sync_batchnorm import sync_batchnorm_sums  # noqa: E402
from trinn.kernels.upsample2d import (  # noqa: E402
    bilinear2d_backward,
    bilinear2d_forward,
    nearest2d_backward,
    nearest2d_forward,
)
from trinn.kernels.vmap import register_vmap  # noqa: E402

register_vmap(library)

hash_device_functions([module for name, module in sorted(sys.modules.items()) if name.startswith("trinn.kernels.")])

__all__ = [
    "antialias2d_backward",
    "antialias2d_forward",
    "avg_pool2d_backward",
    "avg_pool2d_forward",
    "batchnorm2d_add_relu",
    "batchnorm2d_backward",
    "batchnorm2d_fold",
    "batchnorm2d_forward",
    "batchnorm2d_merge",
    "batchnorm2d_statistics",
    "batchnorm2d_relu_sums",
    "batchnorm2d_sums",
    "batchnorm2d_update",
    "bilinear2d_backward",
    "bilinear2d_forward",
    "channel_sum",
    "conv_transpose2d_dgrad",
    "conv_transpose2d_fprop",
    "conv_transpose2d_wgrad",
    "linear_dgrad",
    "linear_fprop",
    "linear_relu",
    "linear_wgrad",
    "pad2d_backward",
    "pad2d_forward",
    "relu_",
    "relu_backward",
    "relu_forward",
    "conv2d_affine",
    "conv2d_dgrad",
    "conv2d_fprop",
    "conv2d_relu_max_pool2d",
    "conv2d_statistics",
    "conv2d_wgrad",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "max_pool2d_pick",
    "max_unpool2d_add",
    "max_unpool2d_backward",
    "max_unpool2d_forward",
    "nearest2d_backward",
    "nearest2d_forward",
    "ops",
    "sync_batchnorm_sums",
]
