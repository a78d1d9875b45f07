"""The Triton kernels and their launchers. No autograd, no nn.Module.

A *launcher* plans a call: it allocates the result, chooses a tile and requests launches. Its decorator @op registers it as an
opaque torch operator, `torch.ops.trinn.<name>`. `launchers` has all launchers by name, and `ops` has the operators.

    conv2d/             convolution; passes.py has its launchers and chooses the kernel
    conv_transpose2d    transposed convolution in terms of conv2d/, for tests: layers/ calls the launchers of conv2d/
    activation          ReLU, SiLU, GELU and others, each element alone; device/activations.py has their formulas
    scale_add           addition, and scaling of the channels of each image
    linear, pad2d, max_unpool2d, pixel_shuffle
    pool2d              max and average pooling, with windows or adaptive
    batchnorm2d         batch normalisation; statistics2d has its means, variances and running statistics
    upsample2d          resizing; antialias2d has resizing with antialiasing
    reduce              sums of splits, gradients of biases, global average pooling
    gather2d            the kernel that pooling, resizing and padding share
    copy                copies and constants
    device/             device functions, called by the kernels
    runtime/            torch operators (op.py), plans (plan.py), tiles (tuning.py), launches (launch.py), launch cache
"""

import sys

if __name__ == "trinn.kernels":
    from .runtime import interpreter  # noqa: F401, I001  # before Triton

    # Each module registers its operators.
    from . import (  # noqa: F401
        activation,
        antialias2d,
        batchnorm2d,
        conv2d,
        linear,
        max_unpool2d,
        pad2d,
        pixel_shuffle,
        pool2d,
        reduce,
        scale_add,
        statistics2d,
        upsample2d,
    )
    from .device.function import hash_device_functions
    from .runtime.op import *

    hash_device_functions([module for name, module in sorted(sys.modules.items()) if name.startswith("trinn.kernels.")])
else:
    # Hugging Face also has a package `kernels`, but with a checkout on sys.path `import kernels` finds this file first. If that
    # package is installed, it replaces this module. Otherwise this module stays, empty: transformers reads its version.
    import importlib.util
    from pathlib import Path

    __path__ = []
    _folders = [folder for folder in sys.path if not Path(folder, "kernels", "conv2d", "tma.py").exists()]
    _found = filter(None, (finder.find_spec(__name__, _folders) for finder in sys.meta_path))
    if (_spec := next(_found, None)) is not None and _spec.origin is not None and _spec.loader is not None:
        sys.modules[__name__] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[__name__])
