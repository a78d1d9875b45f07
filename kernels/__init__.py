"""The Triton kernels and their launchers. No autograd, no nn.Module.

`launchers` has the launchers by name. Each launcher is also an opaque torch operator, `torch.ops.trinn.<name>`, and `ops` has
the operators.
"""

import sys

if __name__ == "trinn.kernels":
    from .runtime import interpreter  # noqa: F401, I001  # before Triton

    # Each module registers its operators.
    from . import (  # noqa: F401
        antialias2d,
        batchnorm2d,
        conv2d,
        linear,
        max_unpool2d,
        pad2d,
        pool2d,
        reduce,
        relu,
        statistics2d,
        upsample2d,
    )
    from .runtime.flops import register_flops
    from .device.function import hash_device_functions
    from .runtime.op import launchers, library, ops
    from .runtime.vmap import register_vmap

    __all__ = ["launchers", "ops"]

    register_vmap(library)
    register_flops()
    hash_device_functions([module for name, module in sorted(sys.modules.items()) if name.startswith("trinn.kernels.")])
else:
    # `import kernels` with a checkout on sys.path means Hugging Face's package, which replaces this module if it is installed.
    # Otherwise this module stays, empty: transformers finds the name and imports it to read a version.
    import importlib.util
    from pathlib import Path

    __path__ = []
    _folders = [folder for folder in sys.path if not Path(folder, "kernels", "conv2d", "tma.py").exists()]
    _found = filter(None, (finder.find_spec(__name__, _folders) for finder in sys.meta_path))
    if (_spec := next(_found, None)) is not None and _spec.origin is not None and _spec.loader is not None:
        sys.modules[__name__] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[__name__])
