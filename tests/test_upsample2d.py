import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.cases import named
from tests.check import DEVICE, DTYPES, check, gradients, raises_like, randn
from trinn.kernels import ops

SMALL = (2, 3, 5, 4)
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "twice": (SMALL, {"scale_factor": 2}),
    "digits: 8 to 32": ((1, 1, 8, 8), {"size": 32}),
    "to a size": (SMALL, {"size": (9, 11)}),
    "down": ((1, 2, 11, 13), {"size": (4, 5)}),
    "far down": ((1, 1, 40, 7), {"size": (3, 2)}),
    "same size: a copy": (SMALL, {"size": (5, 4)}),
    "same size by a factor that says otherwise": (SMALL, {"scale_factor": 1.15}),
    "one axis the same": (SMALL, {"scale_factor": (1.1, 2.5)}),
    "a factor that divides nothing: coordinates go by the factor": ((1, 2, 7, 7), {"scale_factor": 1.5}),
    "the same, recomputed: coordinates go by the sizes": ((1, 2, 7, 7), {"scale_factor": 1.5, "recompute_scale_factor": True}),
    "a factor that floors": ((1, 1, 49, 3), {"scale_factor": (2.0408163, 7 / 3)}),
    "a factor below one": ((1, 2, 10, 11), {"scale_factor": 0.4}),
    "corners": (SMALL, {"size": (9, 11), "align_corners": True}),
    "corners, down": ((1, 2, 11, 13), {"size": (4, 5), "align_corners": True}),
    "corners, one output": (SMALL, {"size": (1, 1), "align_corners": True}),
    "one output": (SMALL, {"size": 1}),
    "one pixel": ((2, 3, 1, 1), {"size": (4, 5)}),
    "one pixel, corners": ((2, 3, 1, 1), {"size": (4, 5), "align_corners": True}),
    "one row": ((1, 2, 1, 6), {"scale_factor": 2}),
    "empty batch": ((0, 3, 5, 4), {"scale_factor": 2}),
}


def ours(x: torch.Tensor, **options: Any) -> torch.Tensor:
    return tnn.interpolate(x, mode="bilinear", **options)


def torchs(x: torch.Tensor, **options: Any) -> torch.Tensor:
    return F.interpolate(x, mode="bilinear", **options)


@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case: tuple[tuple[int, ...], dict[str, Any]]) -> None:
    check(ours, torchs, randn(*case[0]), **case[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_dtypes(dtype: torch.dtype, align_corners: bool) -> None:
    check(ours, torchs, randn(*SMALL, dtype=dtype), size=(9, 11), align_corners=align_corners)


LAYOUTS = {
    "channels_last": lambda: randn(2, 5, 4, 3).contiguous(memory_format=torch.channels_last),
    "channels_last, 3 channels": lambda: randn(2, 3, 4, 3).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: randn(2, 5, 3, 4).transpose(2, 3),
    "every second row": lambda: randn(2, 5, 8, 3)[:, :, ::2],
    "expanded": lambda: randn(1, 5, 4, 3).expand(2, 5, 4, 3),
}


@pytest.mark.parametrize("layout", named(LAYOUTS))
def test_layouts(layout: Any) -> None:
    check(ours, torchs, layout(), scale_factor=2)


@pytest.mark.parametrize("align_corners", [False, True])
def test_gather_misses_no_reader(align_corners: bool) -> None:
    """The matrix of the backward is that of the forward, transposed, to the bit: sizes, factors, and scales of no sizes."""
    cases: list[tuple[int, int, float | None]] = [
        (size, out, None) for size in (1, 2, 3, 7, 12) for out in (1, 2, 3, 5, 8, 14, 29, 36)
    ]
    cases += [(size, math.floor(size * f), 1 / f) for size in (2, 5, 9) for f in (0.6, 0.77, 1.01, 1.3, 2.1, 3.7)]
    cases += [(5, 9, 3.0), (9, 5, 0.1), (5, 9, 0.125), (4, 6, 1.0)]
    for size, out, given in cases:
        even = (size - 1) / max(out - 1, 1) if align_corners else size / out
        arguments = (given or even, 1.0), align_corners
        forward = ops.bilinear2d_forward(identity(size), (out, 1), *arguments).view(size, out)
        backward = ops.bilinear2d_backward(identity(out), (size, 1), *arguments).view(out, size)
        assert torch.equal(forward, backward.T), (size, out, given)


def identity(size: int) -> torch.Tensor:
    """As many images of one column, each with a one in another row."""
    return torch.eye(size, device=DEVICE).view(size, 1, size, 1)


def test_readers_of_long_axes() -> None:
    """Each output is read once in all, also where rounding moves coordinates across a pixel."""
    for size, out in ((3, 400), (5000, 3), (997, 2991), (2991, 997), (1000, 1001)):
        scales = (1.0, size / out)
        y = torch.ones(1, 1, 1, out, device=DEVICE)
        dx = ops.bilinear2d_backward(y, (1, size), scales, False)
        assert abs(dx.sum().item() - out) <= 1e-6 * out, (size, out)


def test_adjoint() -> None:
    """<up(x), y> = <x, backward(y)>."""
    x, y = randn(1, 2, 5, 6, dtype=torch.float64).requires_grad_(), randn(1, 2, 8, 17, dtype=torch.float64)
    (dx,) = torch.autograd.grad(ours(x, size=(8, 17)), x, y)
    torch.testing.assert_close((ours(x, size=(8, 17)) * y).sum(), (x * dx).sum(), rtol=1e-13, atol=1e-13)


def test_keeps_ramps() -> None:
    """A linear image stays linear, exactly so between aligned corners."""
    ramp = torch.arange(5.0, dtype=torch.float64, device=DEVICE).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    expected = torch.linspace(0, 4, 9, dtype=torch.float64, device=DEVICE).expand(1, 1, 3, 9)
    torch.testing.assert_close(ours(ramp, size=(3, 9), align_corners=True), expected)


def test_nan_and_infinity_spread_like_torchs() -> None:
    """A neighbour of weight 0 still counts: 0 * NaN is NaN."""
    x = torch.tensor([[[[1.0, float("inf"), 2.0], [3.0, float("nan"), 5.0], [1.0, 2.0, 3.0]]]], device=DEVICE)
    for size in ((3, 6), (6, 6), (3, 3)):
        torch.testing.assert_close(ours(x, size=size), torchs(x, size=size), equal_nan=True)


def test_expanded_gradient_and_same_bits() -> None:
    (first,), (again,) = (gradients(ours, randn(*SMALL), size=(9, 11)) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, gradients(torchs, randn(*SMALL), size=(9, 11))[0])


def test_sixteen_bit_gradients_are_summed_in_float32() -> None:
    """2,048 and eight ones are 2,056; a sum in float16 stops at 2,048."""
    dy = torch.ones(1, 1, 1, 9, dtype=torch.float16, device=DEVICE)
    dy[..., 0] = 2048
    assert ops.bilinear2d_backward(dy, (1, 1), (1.0, 1 / 9), False).item() == 2056


def test_gradcheck() -> None:
    x = randn(1, 2, 3, 4, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda x: ours(x, size=(5, 7)), [x], fast_mode=True)
    assert gradgradcheck(lambda x: ours(x, size=(5, 7)), [x], fast_mode=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fakes_are_exact(memory_format: torch.memory_format) -> None:
    x = randn(2, 4, 5, 6).contiguous(memory_format=memory_format)
    arguments = (7, 9), (5 / 7, 6 / 9), False
    for name in ("bilinear2d_forward", "bilinear2d_backward"):
        operator = getattr(ops, name).default
        torch.library.opcheck(operator, (x, *arguments), test_utils=("test_schema", "test_faketensor"))


ERRORS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "three axes": ((3, 5, 4), {"scale_factor": 2}),
    "no size": (SMALL, {}),
    "two sizes": (SMALL, {"size": 3, "scale_factor": 2}),
    "one number for two axes": (SMALL, {"size": (3,)}),
    "three factors": (SMALL, {"scale_factor": (1.0, 2.0, 3.0)}),
    "no output rows": (SMALL, {"size": (0, 3)}),
    "a factor too small": (SMALL, {"scale_factor": 0.1}),
    "a negative factor": (SMALL, {"scale_factor": -1.0}),
    "recomputing a size": (SMALL, {"size": 3, "recompute_scale_factor": True}),
    "no rows": ((2, 3, 0, 4), {"size": 3}),
    "no channels": ((2, 0, 5, 4), {"size": 3}),
    "a size of floats": (SMALL, {"size": (3.0, 4.0)}),
}


@pytest.mark.parametrize("case", named(ERRORS))
def test_errors(case: tuple[tuple[int, ...], dict[str, Any]]) -> None:
    raises_like(torchs, ours, randn(*case[0]), **case[1])


def test_what_is_not_there_says_so() -> None:
    raises_like(torchs, ours, randn(*SMALL).int(), scale_factor=2)
    for options in ({"mode": "bicubic"}, {"mode": "bilinear", "antialias": True}, {}):
        with pytest.raises(NotImplementedError, match="bilinear"):
            tnn.interpolate(randn(*SMALL), scale_factor=2, **options)


def test_modules_are_torchs() -> None:
    for name, options in (("Upsample", {"scale_factor": 1.5, "mode": "bilinear"}), ("UpsamplingBilinear2d", {"size": (7, 9)})):
        ours, torchs = (getattr(nn, name)(**options) for nn in (tnn, torch.nn))
        assert repr(ours) == repr(torchs) and "__init__" not in vars(getattr(tnn, name))
        torch.testing.assert_close(ours(randn(*SMALL)), torchs(randn(*SMALL)))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_whole(dynamic: bool | None) -> None:
    """torch.compile finds no break, also where sizes and factors are symbols."""
    torch._dynamo.reset()
    module = tnn.Upsample(scale_factor=1.5, mode="bilinear")
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for shape in ((2, 3, 7, 6), (2, 3, 8, 9)):
        x = randn(*shape).requires_grad_()
        got, expected = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (compiled, module))
        assert torch.equal(got, expected)
