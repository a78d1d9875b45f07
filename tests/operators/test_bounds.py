"""No access outside of a tensor: every tensor is part of a larger one, filled with NaN or with bytes to check afterwards."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import trinn.layers as tnn
from tests.support.check import DEVICE
from tests.support.operator_cases import CASES, TMA_CASES, results
from tests.support.record import OperatorCase
from tests.support.tma import tma_everywhere
from trinn.kernels import ops
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.settings import settings

MARGIN = 1024  # elements before and after a tensor allocated by a launcher
BYTE = 0xFF  # fills the margins: NaN in every floating dtype


class Buffers:
    """The memory allocated by launchers."""

    def __init__(self) -> None:
        self.margins: list[Tensor] = []
        self._empty = torch.empty

    def allocate(self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
        """A dense tensor in the middle of a larger one, all NaN."""
        margin = MARGIN * dtype.itemsize
        buffer = self._empty(shape.numel() * dtype.itemsize + 2 * margin, dtype=torch.uint8, device=device).fill_(BYTE)
        self.margins += [buffer[:margin], buffer[-margin:]]
        return buffer.view(dtype).as_strided(shape, strides, MARGIN)

    def survived(self) -> bool:
        """Whether all margins are unchanged."""
        return all(bool((margin == BYTE).all()) for margin in self.margins)


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buffers]:
    """torch.empty and torch.empty_like, used by launchers, return parts of larger buffers."""
    made = Buffers()
    empty, empty_like = torch.empty, torch.empty_like

    def empty_inside(*shape: Any, dtype: torch.dtype = torch.float32, device: Any = "cpu", **options: Any) -> Tensor:
        strides = empty(*shape, device="meta", **options)
        return made.allocate(strides.shape, strides.stride(), dtype, device)

    def empty_like_inside(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        strides = empty_like(tensor, device="meta")
        return made.allocate(strides.shape, strides.stride(), dtype or tensor.dtype, tensor.device)

    monkeypatch.setattr(torch, "empty", empty_inside)
    monkeypatch.setattr(torch, "empty_like", empty_like_inside)
    yield made


def surrounded(tensor: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """The same values inside a larger tensor of NaN, or of the largest integer, and the larger tensor."""
    around = tuple(size + 3 for size in tensor.shape)
    value = math.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    order = torch.channels_last if channels_last and tensor.dim() == 4 else torch.contiguous_format
    whole = tensor.new_full(around, value).contiguous(memory_format=order)
    inside = whole[tuple(slice(1, size + 1) for size in tensor.shape)]
    inside.copy_(tensor)
    return inside, whole


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_every_operator(name: str, channels_last: bool, buffers: Buffers) -> None:
    assert_stays_inside(CASES[name], channels_last, buffers)


@pytest.mark.parametrize(
    ("channels_last", "allowed"), [(False, "tf32"), (True, "tf32"), pytest.param(True, "ieee", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("name", TMA_CASES)
def test_through_tma(name: str, channels_last: bool, allowed: str, buffers: Buffers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TMA kernels; test_tma_box.py checks the descriptors of tensors read in place."""
    torch.backends.cudnn.conv.fp32_precision = allowed
    monkeypatch.setattr(settings, "interpreted_block", 256)
    case = TMA_CASES[name]
    if allowed == "ieee":  # fewer images, because float32 takes six times as long
        (images, *rest), *others = case.shapes
        case = case._replace(shapes=((min(images, 3), *rest), *others))
    with tma_everywhere() as started:
        assert_stays_inside(case, channels_last, buffers)
    assert started or allowed == "ieee"


@functools.cache
def alone(case: OperatorCase, allowed: str) -> dict[str, Tensor]:
    """The results for tensors that are not part of larger ones."""
    return results(case, case.tensors(), case.others())


def assert_stays_inside(case: OperatorCase, channels_last: bool, buffers: Buffers) -> None:
    plain = alone(case, torch.backends.cudnn.conv.fp32_precision)
    inputs = [surrounded(t, channels_last) for t in case.tensors()]
    others = [surrounded(t, channels_last) for t in case.others()]
    before = [whole.clone() for _, whole in inputs + others]
    upstream: list[tuple[Tensor, Tensor]] = []

    def inside_another(gradient: Tensor) -> Tensor:
        upstream.append(surrounded(gradient, channels_last))
        return upstream[-1][0]

    found = results(case, [inside for inside, _ in inputs], tuple(inside for inside, _ in others), inside_another)
    for key, value in found.items():
        assert value.isfinite().all(), f"{key}: NaN from outside of an input, or from unwritten memory"
        torch.testing.assert_close(value, plain[key], msg=f"{key} depends on memory outside")
    for (_, whole), old in zip(inputs + others, before, strict=True):
        torch.testing.assert_close(whole, old, rtol=0, atol=0, equal_nan=True)
    assert len(buffers.margins) >= 4
    assert buffers.survived(), "a kernel wrote outside of an output"


@pytest.mark.skipif(INTERPRETED, reason="for compute-sanitizer (`make sanitize`), which checks GPU memory")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_exact_allocations(name: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Allocations without margins; no memory is written before a kernel writes it."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    order = torch.channels_last if channels_last else torch.contiguous_format
    case = CASES[name]
    tensors = [t.contiguous(memory_format=order) if t.dim() == 4 else t for t in case.tensors(dtype)]
    others = tuple(t.to(dtype) if t.is_floating_point() else t for t in case.others())
    for key, value in results(case, tensors, others).items():
        assert value.isfinite().all(), key


def test_relu_in_place() -> None:
    inside, whole = surrounded(torch.linspace(-1, 1, 35, device=DEVICE).reshape(5, 7), False)
    tnn.relu_(inside)
    assert int(whole.isnan().sum()) == whole.numel() - inside.numel() and bool((inside >= 0).all())


def test_running_statistics() -> None:
    """Running statistics are updated in place, with any strides."""
    zeros, ones = torch.zeros(5, device=DEVICE), torch.ones(5, device=DEVICE)
    (mean, means), (var, variances) = surrounded(zeros, False), surrounded(ones, False)
    ops.batchnorm2d_update(mean, var, ones, ones, 0.5, 10)
    for inside, whole in ((mean, means), (var, variances)):
        assert bool(inside.isfinite().all()) and int(whole.isnan().sum()) == 3


def test_a_write_outside_is_detected(buffers: Buffers) -> None:
    inside = torch.empty(3, 5)
    inside.as_strided((16,), (1,), inside.storage_offset())[15] = 1
    assert not buffers.survived()
