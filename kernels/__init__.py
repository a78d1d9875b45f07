"""The kernels and their launchers: what runs on the GPU, and how it is started. No autograd, no nn.Module.

`launchers` has the launchers by name. Each is also an opaque torch operator, `torch.ops.trinn.<name>`; `ops` calls these.
"""

import sys

if __name__ == "trinn.kernels":
    from .runtime import interpreter  # noqa: F401, I001  # before Triton

    # Each of these registers its operators.
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
    # `import kernels`, with a checkout on sys.path: Hugging Face's package is meant, and takes our place if it is installed.
    # If not, an empty module stays: transformers finds the name and imports it, to ask for a version.
    import importlib.util
    from pathlib import Path

    __path__ = []
    _folders = [folder for folder in sys.path if not Path(folder, "kernels", "conv2d", "tma.py").exists()]
    _found = filter(None, (finder.find_spec(__name__, _folders) for finder in sys.meta_path))
    if (_spec := next(_found, None)) is not None and _spec.origin is not None and _spec.loader is not None:
        sys.modules[__name__] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[__name__])
