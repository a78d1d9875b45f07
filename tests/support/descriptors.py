"""Compare the launches of a kernel with tensor descriptors, from the launch cache and from its launcher.

The launches must be equal, and no tensor map may be encoded twice. Run in a separate process:

    python -m tests.support.descriptors           on the stub GPU (a fake driver)
    python -m tests.support.descriptors cuda      on a Hopper or newer GPU; checks the computed results
    python -m tests.support.descriptors --stub    requires Triton 3.6; builds and calls Triton's C launchers, and compares the
                                                  bytes passed to cuLaunchKernelEx, tensor maps included
"""

import dataclasses
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bench import stub_driver, stub_gpu  # before trinn

from tests.support.cached_launches import LAUNCHES, shifted, track_allocations  # isort: skip
from trinn.kernels.runtime import launch_cache
from trinn.kernels.runtime.allocate import empty
from trinn.kernels.runtime.launch import launch

ORDER = (0, 0, 1, 2, 0, 1, 2, 0)  # input of each call; the second call is the first replay
BLOCK = 16
COLUMNS = 64
CAN_ROUND = any(field.name == "round_f32_to_tf32" for field in dataclasses.fields(TensorDescriptor))  # Triton >= 3.7


@triton.jit
def _pairs_kernel(x, bias, later, y, BLOCK: tl.constexpr):
    """BLOCK rows of y = x + later + bias. The tensor `later` starts one row after x."""
    row = tl.program_id(0) * BLOCK
    pairs = x.load([row, 0]) + later.load([row, 0]) + tl.load(bias)
    y.store([0, row, 0], pairs[None])


def smoothed(x: Tensor, bias: Tensor) -> Tensor:
    """Return x[:-2] + 2 * x[1:-1] + x[2:] + 3 * bias[1]. Each of two launches adds adjacent rows and the bias."""
    pairs, y = (empty(x, (x.shape[0] - fewer, COLUMNS)) for fewer in (1, 2))
    rounds = {"round_f32_to_tf32": True} if CAN_ROUND and x.dtype is torch.float32 else {}
    for source, target in ((x, pairs), (pairs, y)):
        launch(
            _pairs_kernel,
            triton.cdiv(target.shape[0], BLOCK),
            TensorDescriptor.from_tensor(source, [BLOCK, COLUMNS], **rounds),
            bias[1:],
            TensorDescriptor.from_tensor(source[1:], [BLOCK, COLUMNS], padding="nan"),
            TensorDescriptor.from_tensor(target[None], [1, BLOCK, COLUMNS]),
            BLOCK=BLOCK,
            device=x.device,
        )
    return y


def inputs(dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor]:
    """Return three tensors of one shape and a bias. All values are small integers, so that sums are exact.

    The third tensor starts inside its allocation. The kernel's bias is the second of two elements, so its pointer is an offset
    into a tensor.
    """
    draw = torch.Generator().manual_seed(0)
    first, second, third = torch.randint(-8, 8, (3, 50, COLUMNS), generator=draw).to(device, dtype)
    return [first.clone(), second.clone(), shifted(third, COLUMNS)], torch.tensor([7, 1], dtype=dtype, device=device)


def on_a_gpu(dtype: torch.dtype) -> None:
    """Check the results of recorded and replayed calls."""
    tensors, bias = inputs(dtype, "cuda")
    cached = launch_cache.cached(smoothed)
    for number in ORDER:
        x = tensors[number]
        assert torch.equal(cached(x, bias), x[:-2] + 2 * x[1:-1] + x[2:] + 3), f"{dtype}, input {number}"


ENCODED: list[int] = []  # addresses of the encoded tensor maps
COMPARED: list[Any] = []  # compared launches


def encoding(encode: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `encode` to record the addresses in ENCODED."""

    def encode_one(address: int, *form: Any) -> Any:
        ENCODED.append(address)
        return encode(address, *form)

    return encode_one


def on_a_stub_gpu(dtype: torch.dtype) -> None:
    """Compare the launches of recorded and replayed calls with the launcher's, and count encoded tensor maps."""
    tensors, bias = inputs(dtype, "cpu")
    cached = launch_cache.cached(smoothed)

    def launches(launcher: Callable[..., Any], x: Tensor) -> list[Any]:
        LAUNCHES.clear()
        ENCODED.clear()
        for tensor in (x, bias):
            LAUNCHES.track(tensor)
        launcher(x, bias)
        return LAUNCHES.found

    by_cache: list[int] = []
    for call, number in enumerate(ORDER):
        found = launches(cached, tensors[number])
        by_cache += ENCODED if call >= 1 else []
        assert found == launches(smoothed, tensors[number]), f"{dtype}, call {call}"
        COMPARED.extend(found)
    assert [by_cache.count(x.data_ptr()) for x in tensors] == [1, 1, 1], "each address must be encoded once"
    kept = [weakref.ref(tensors.pop()) for _ in range(3)]
    assert not any(x() is not None for x in kept), "the launch cache keeps tensors alive"


def main() -> int:
    check = on_a_gpu if sys.argv[1:] == ["cuda"] else on_a_stub_gpu
    if check is on_a_stub_gpu:
        stub_gpu.stand_in()
        if sys.argv[1:] == ["--stub"]:
            stub_driver.install(LAUNCHES.add_reached)
        else:
            stub_gpu.watch(LAUNCHES.add)
        utils: Any = stub_gpu.StubDriver.utils
        utils.fill_tma_descriptor = utils.fill_tma_descriptor_tiled = encoding(utils.fill_tma_descriptor)
        track_allocations()
    for dtype in (torch.float16, torch.float32):
        check(dtype)
    if sys.argv[1:] == ["--stub"]:
        print(f"{len(COMPARED)} launches compared byte for byte; {len(stub_driver.SOURCES)} C launchers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
