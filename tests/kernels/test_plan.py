"""Plans (kernels/runtime/plan.py): a launcher starts nothing, and torch only allocates and views tensors in it."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import trinn.layers as tnn
from tests.support.check import DEVICE, check, randn
from tests.support.operator_cases import CASES, TMA_CASES, results
from tests.support.record import OperatorCase
from tests.support.tma import tma_everywhere
from trinn.kernels import launchers
from trinn.kernels.copy import convert, fill
from trinn.kernels.runtime import launch
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.plan import Plan, current_plan, make_plan

ALLOCATIONS = {getattr(torch.ops.aten, name).default for name in ("empty_like", "empty_strided")} | {
    torch.ops.aten.empty.memory_format
}
# On a CPU the launchers of unpooling check the indices; on a GPU their kernels do.
CHECKS = {"aten::min", "aten::max", "aten::_local_scalar_dense"}


class OtherCalls(TorchDispatchMode):
    """Collects torch's operators besides allocations and views. In inference mode torch reports some copies as views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = result if isinstance(result, (tuple, list)) else (result,)
        if func not in ALLOCATIONS and not (func.is_view and all(shares_memory(args[0], view) for view in views)):
            self.names.add(func.name())
        return result


def shares_memory(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage()._cdata == y.untyped_storage()._cdata


def strided(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


VARIANTS: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "contiguous": lambda tensors: tensors,
    "strided": lambda tensors: list(map(strided, tensors)),
    "channels_last": lambda tensors: [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors],
    "no images": lambda tensors: [t[:0] if t.dim() == 4 and t.shape[0] == tensors[0].shape[0] else t for t in tensors],
}


def assert_only_allocations(case: OperatorCase, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def watched(launcher: Any, args: tuple[Any, ...], options: Mapping[str, Any] | None = None) -> Plan:
        with OtherCalls() as others:
            plans.append(make_plan(launcher, args, options))
        assert others.names <= (CHECKS if "unpool" in launcher.__name__ else set()), launcher.__name__
        return plans[-1]

    monkeypatch.setattr(launch, "make_plan", watched)
    monkeypatch.setattr(launch, "start_plan", lambda plan: [])  # the plan is enough
    for dtype in (torch.float32, torch.float16):
        others = tuple(strided(t) if t.dim() == 1 and variant == "strided" else t for t in case.others())
        with contextlib.suppress(ValueError, RuntimeError):  # some operators need an image
            results(case, VARIANTS[variant](case.tensors(dtype)), others)
    assert plans or variant == "no images"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_launchers_only_allocate_and_view(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_only_allocations(CASES[name], variant, monkeypatch)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TMA_CASES)
def test_launchers_for_tma_only_allocate_and_view(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tma_everywhere():
        assert_only_allocations(TMA_CASES[name], variant, monkeypatch)


def test_a_plan_starts_nothing() -> None:
    """The plan has the allocations and launches of a whole call, also of launchers called by a launcher."""
    x, w = randn(2, 3, 6, 6), randn(5, 3, 3, 3)
    args = (
        x,
        w,
        None,
        "relu",
        (6, 6),
        (1, 1),
        (1, 1),
        (1, 1),
        1,
        (3, 3),
        (3, 3),
        (2, 2),
        (1, 1),
        (1, 1),
    )  # overlapping windows
    plan = make_plan(launchers.conv2d_activation_max_pool2d, args)
    y, codes = plan.results
    assert y.isnan().all() and len(plan.launches) == 2 and len(plan.allocations) == 3 and current_plan() is None
    launch.start_plan(plan)
    expected = F.max_pool2d(F.conv2d(x, w, padding=1).relu(), 3, 2, 1)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)


def test_an_error_ends_the_plan() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError):
        make_plan(fails, ())
    assert current_plan() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_convert(dtype: torch.dtype) -> None:
    """torch's conversion, for any strides. The interpreter truncates to bfloat16."""
    values = torch.tensor([0.0, -0.0, 1.5, float("inf"), float("nan"), 1e-7, 65519.0, 1 / 3], device=DEVICE)
    x = values.repeat(15).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    out = convert(x, torch.empty(2, 3, 5, 4, dtype=dtype, device=DEVICE).transpose(2, 3))
    truncates = INTERPRETED and dtype is torch.bfloat16
    torch.testing.assert_close(out, x.to(dtype), rtol=torch.finfo(dtype).eps if truncates else 0, atol=0, equal_nan=True)
    assert torch.equal(out.signbit(), x.signbit())


@pytest.mark.parametrize("value", [0.0, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_fill(dtype: torch.dtype, value: float) -> None:
    out = fill(torch.ones(2, 5, 3, dtype=dtype, device=DEVICE).mT, value)
    torch.testing.assert_close(out, torch.full_like(out, value), equal_nan=True)


def test_strided_vectors() -> None:
    """Bias, weight and statistics may have any strides: a kernel copies them."""
    x, w, b = randn(2, 4, 5, 5), randn(8, 4, 3, 3), strided(randn(8))
    check(lambda x, w, b: tnn.conv2d(x, w, b), lambda x, w, b: F.conv2d(x, w, b), x, w, b)
    check(tnn.linear, F.linear, randn(3, 6), randn(8, 6), strided(randn(8)))
