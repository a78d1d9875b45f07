"""Print, as JSON, the 32-bit integer multiplications in each kernel with int64 offsets: for test_large_tensors.py.

The code is Triton's TTIR after inlining. No GPU and no code generator are needed.
"""

import json
import re
from typing import Any

import torch
import triton
from torch import Tensor
from triton._C.libtriton import ir, passes
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from bench.compile.code import Driver
from tests.operators.test_large_tensors import PASSES
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.settings import settings

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "debug", "sanitize_overflow")


def code_of(kernel: Any, args: Any, constants: dict[str, Any]) -> str:
    """The TTIR of a launch."""
    compiled: dict[str, Any] = {}

    def remember(*, compile: dict[str, Any], **_: Any) -> bool:
        compiled.update(compile)
        return True  # stops Triton from compiling now

    triton.knobs.runtime.jit_cache_hook = remember
    kernel.device_caches.clear()
    kernel.warmup(*args, grid=(1,), **constants)
    triton.knobs.runtime.jit_cache_hook = None
    target = triton.runtime.driver.active.get_current_target()
    backend = make_backend(target)
    options = backend.parse_options({name: value for name, value in constants.items() if name in OPTIONS})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source = ASTSource(kernel, compiled["signature"], compiled["constants"], compiled["configs"][0])
    module = source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    manager = ir.pass_manager(context)
    passes.common.add_inliner(manager)
    passes.common.add_canonicalizer(manager)
    passes.common.add_cse(manager)
    manager.run(module, "products")
    return str(module)


def main() -> None:
    triton.runtime.driver.set_active(Driver("sm_90"))
    settings.int64_offsets = True
    found: dict[str, set[str]] = {}

    def observe(kernel: Any, programs: int, args: Any, constants: dict[str, Any]) -> None:
        name = kernel.fn.__name__
        code = code_of(kernel, args, constants)
        products = re.findall(r"^.*\barith\.muli\b.*\b(?:i32|\d+xi32>).*$", code, re.MULTILINE)
        found.setdefault(name, set()).update(line.strip() for line in products)

    def contiguous(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def channels_last(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        tensor = contiguous(*shape, dtype=dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    with intercepted(observe, "sm_90"):
        for new in (contiguous, channels_last):
            for run in PASSES.values():
                run(new)
    print(json.dumps({name: sorted(lines) for name, lines in found.items()}))


if __name__ == "__main__":
    main()
