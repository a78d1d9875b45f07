"""Tensors of more than 2^31 elements, and tensors with strides beyond int32.

Three checks: support/large_tensors.py runs the operators on these tensors, in memory mapped without reserve. OperatorCase launch uses
int64 offsets if one of its tensors needs them. The code of every kernel with int64 offsets multiplies in int64.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor

from bench import shapes
from tests.support.check import DEVICE
from tests.support.operator_cases import CASES
from tests.support.record import TAP_NUMBER, table
from trinn.kernels import launchers
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.layout import index_type
from trinn.kernels.runtime.settings import settings

ROOT = Path(__file__).resolve().parents[2]
PASSES: dict[str, shapes.Passes] = table("passes")
MANY_PASSES: dict[str, shapes.Passes] = table("many_passes")
LAST_IMAGE: dict[str, Callable[[Tensor], Any]] = table("last_image")
# The remaining 32-bit multiplications in kernels with int64 offsets. None is an offset or a number of elements.
SMALL_MULTIPLICATIONS: dict[str, str] = {
    "_channel_sum_kernel": "the lanes of a tile",
    "_gather2d_kernel": "twice a size, the reach of a window, and the number of a tap",
} | table("small_multiplications")


class Launch:
    """An intercepted launch."""

    def __init__(self, kernel: Any, programs: int, args: Any, constants: Any) -> None:
        self.kernel, self.programs, self.args, self.constants = kernel, programs, args, constants

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def needs_int64(self) -> bool:
        return any((max(reach(a), a.numel()) if isinstance(a, Tensor) else a) >= 2**31 for a in flat(self.args))


def flat(args: Any) -> list[Any]:
    """The tensors and integers among arguments."""
    if isinstance(args, tuple):
        return [value for arg in args for value in flat(arg)]
    return [args] if isinstance(args, (Tensor, int)) else []


def reach(tensor: Tensor) -> int:
    """The offset of the last element."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@pytest.fixture
def launches_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Launch]]:
    """A function that returns the launches of passes on a GPU, with meta tensors whose strides `laid_out` may change."""
    monkeypatch.undo()  # conftest's small tiles
    monkeypatch.setattr(settings, "int64_offsets", False)
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(settings, "wanted_programs", 264)
    found: list[Launch] = []

    def observe(kernel: Any, programs: int, args: Any, constants: Any) -> None:
        assert type(programs) is int
        found.append(Launch(kernel, programs, args, constants))

    def run(passes: shapes.Passes, laid_out: Callable[[int, Tensor], Tensor] = lambda number, tensor: tensor) -> list[Launch]:
        found.clear()
        number = iter(range(10**6))

        def new(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
            return laid_out(next(number), torch.empty(shape, dtype=dtype, device="meta"))

        with intercepted(observe, "sm_90"):
            passes(new)
        return list(found)

    return run


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", PASSES)
def test_each_tensor_alone_requires_int64(name: str, channels_last: bool, launches_of: Callable[..., list[Launch]]) -> None:
    """Launches use int32 for small tensors, and int64 if one tensor reaches past int32 along any axis."""

    def ordered(number: int, tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=torch.channels_last) if channels_last and tensor.dim() == 4 else tensor

    sizes: list[torch.Size] = []

    def recorded(number: int, tensor: Tensor) -> Tensor:
        sizes.append(tensor.shape)
        return ordered(number, tensor)

    for launch in launches_of(PASSES[name], recorded):
        assert launch.constants.get("INDEX") == tl.int32, launch.name
    for far, size in enumerate(sizes):
        for axis in (axis for axis, n in enumerate(size) if n > 1):

            def spread(number: int, tensor: Tensor, far: int = far, axis: int = axis) -> Tensor:
                tensor = ordered(number, tensor)
                if number != far:
                    return tensor
                strides = list(tensor.stride())
                strides[axis] = 2**31 // (tensor.shape[axis] - 1) + 1
                return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device="meta")

            affected = [launch for launch in launches_of(PASSES[name], spread) if launch.needs_int64]
            for launch in affected:
                assert launch.constants.get("INDEX") == tl.int64, f"{launch.name}: tensor {far} {tuple(size)} by axis {axis}"


@pytest.mark.parametrize("name", MANY_PASSES)
def test_many_elements(name: str, launches_of: Callable[..., list[Launch]]) -> None:
    """More than 2^31 elements, also at one shared address, use int64 and a one-dimensional grid within CUDA's limit."""

    def expanded(number: int, tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, [0] * tensor.dim(), dtype=tensor.dtype, device="meta")

    for laid_out in (lambda number, tensor: tensor, expanded):
        launches = launches_of(MANY_PASSES[name], laid_out)
        assert any(launch.needs_int64 for launch in launches)
        for launch in launches:
            assert 0 < launch.programs < 2**31, launch.name
            assert launch.constants["INDEX"] == tl.int64 or not launch.needs_int64, launch.name


def test_only_launch_py_launches_kernels() -> None:
    """Its grids are one-dimensional."""
    for path in (ROOT / "kernels").rglob("*.py"):
        grids = re.findall(r"kernel\[(.*?)\]\(", path.read_text())
        assert grids == (["(programs,)"] * 2 if path.stem == "launch" else []), path


@pytest.mark.parametrize(
    ("shape", "strides", "dtype"),
    [
        ((2,), (2**31 - 2**20 - 1,), tl.int32),
        ((2,), (2**31 - 2**20,), tl.int64),
        ((2, 2), (2**30, 2**30 - 2**20), tl.int64),
        ((1, 5), (2**40, 1), tl.int32),
        ((2**16, 2**15), (0, 0), tl.int64),
        ((0, 7), (2**40, 1), tl.int32),
        ((), (), tl.int32),
    ],
)
def test_index_type(shape: tuple[int, ...], strides: tuple[int, ...], dtype: tl.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "int64_offsets", False)
    tensor = torch.empty_strided(shape, strides, device="meta")
    assert index_type(tensor) == index_type(torch.empty(3), tensor) == dtype


def test_kernels_multiply_in_int64() -> None:
    """The TTIR of kernels with int64 offsets has no 32-bit multiplications except SMALL_MULTIPLICATIONS."""
    env = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-m", "tests.support.products"], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    multiplications = json.loads(done.stdout)
    launched = {name for path in (ROOT / "kernels").rglob("*.py") for name in defined(path)}
    assert set(multiplications) >= launched, launched - set(multiplications)
    for name, lines in multiplications.items():
        if SMALL_MULTIPLICATIONS.get(name) == TAP_NUMBER:
            lines = [line for line in lines if not re.search(r"%c\d+_i32\b", line)]
        assert not lines or name in SMALL_MULTIPLICATIONS and SMALL_MULTIPLICATIONS[name] != TAP_NUMBER, (name, lines)


def defined(path: Path) -> list[str]:
    return re.findall(r"@triton\.jit\ndef (\w+)", path.read_text())


SLICE = ["conv2d", "max_pool2d", "batch_norm, training", "many: conv2d", "many: bilinear", "many: linear weights"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter uses untouched memory; a GPU has real tensors")
@pytest.mark.parametrize("names", [SLICE, pytest.param([], marks=pytest.mark.long)], ids=["some", "all"])
def test_operators_on_untouched_memory(names: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.large_tensors", *names], cwd=ROOT, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"ended with {done.returncode} in {lines[-1:]}\n{done.stderr[-2000:]}"
    assert lines[-1] == "all results are right"
    assert {line.rpartition(":")[0] for line in lines} >= set(names or CASES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with room for tensors of more than 2^31 elements")
@pytest.mark.parametrize("function", [pytest.param(function, id=name) for name, function in LAST_IMAGE.items()])
def test_real_tensors(function: Callable[[Tensor], Any]) -> None:
    """The last image of a tensor of 2^31 elements has the results of this image alone, forward and backward."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    images = 2**31 // 512 + 1
    if torch.cuda.mem_get_info()[0] < 6 * 2 * images * 512:
        pytest.skip("needs free memory for six of these tensors")
    check_last_image(function, torch.zeros(images, 2, 16, 16, dtype=torch.float16, device="cuda"))


@pytest.mark.parametrize("function", [pytest.param(function, id=name) for name, function in LAST_IMAGE.items()])
def test_real_tensors_of_few_images(function: Callable[[Tensor], Any]) -> None:
    """The check of test_real_tensors on three images, so that every machine runs it."""
    check_last_image(function, torch.zeros(3, 2, 16, 16, dtype=torch.float16, device=DEVICE))


def check_last_image(function: Callable[[Tensor], Any], x: Tensor) -> None:
    x[-1] = torch.arange(512, device=x.device).reshape(2, 16, 16) % 7 - 3
    x.requires_grad_()
    alone = x[-1:].detach().clone().requires_grad_()
    y, expected = function(x), function(alone)
    dy = (torch.arange(expected.numel(), device=x.device) % 5 - 2).to(x.dtype).reshape(expected.shape)
    upstream = torch.zeros_like(y)
    upstream[-1] = dy[0]
    assert torch.equal(y.detach()[-1:], expected.detach())
    (dx,) = torch.autograd.grad(y, x, upstream)
    assert torch.equal(dx[-1:], torch.autograd.grad(expected, alone, dy)[0])


def test_passes_reach_every_kernel(launches_of: Callable[..., list[Launch]]) -> None:
    """The tables above launch every kernel."""
    for passes_by_name in (PASSES, MANY_PASSES):
        names = {launch.name for passes in passes_by_name.values() for launch in launches_of(passes)}
        assert names >= {name for path in (ROOT / "kernels").rglob("*.py") for name in defined(path)}


def test_passes_call_every_launcher(launches_of: Callable[..., list[Launch]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above cover all launchers but those that work in place."""
    called: set[str] = set()

    def recording(name: str, launcher: Callable[..., Any]) -> Callable[..., Any]:
        def launch(*args: Any) -> Any:
            called.add(name)
            return launcher(*args)

        return launch

    for name, launcher in list(vars(launchers).items()):
        monkeypatch.setattr(launchers, name, recording(name, launcher))
    for passes in PASSES.values():
        launches_of(passes)
    assert vars(launchers).keys() - called == {"activation_", "add_"}
