"""Resizing: sizes and factors, layouts, dtypes, gradients, errors. hard_inputs/upsample2d.py has more inputs."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, on_a_cpu, raises_like, randn
from trinn.kernels import ops
from trinn.kernels.runtime.interpreter import INTERPRETED

SMALL = (2, 3, 5, 4)
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "twice": (SMALL, {"scale_factor": 2}),
    "digits: 8 to 32": ((1, 1, 8, 8), {"size": 32}),
    "to a size": (SMALL, {"size": (9, 11)}),
    "down": ((1, 2, 11, 13), {"size": (4, 5)}),
    "far down": ((1, 1, 40, 7), {"size": (3, 2)}),
    "same size: a copy": (SMALL, {"size": (5, 4)}),
    "same size by a factor other than 1": (SMALL, {"scale_factor": 1.15}),
    "one axis the same": (SMALL, {"scale_factor": (1.1, 2.5)}),
    "a factor that divides no size: coordinates follow the factor": ((1, 2, 7, 7), {"scale_factor": 1.5}),
    "the same, recomputed: coordinates follow the sizes": ((1, 2, 7, 7), {"scale_factor": 1.5, "recompute_scale_factor": True}),
    "a factor with sizes rounded down": ((1, 1, 49, 3), {"scale_factor": (2.0408163, 7 / 3)}),
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


# torch copies an axis of equal size, but its antialiased gradient follows the factor: it is not the gradient of a copy.
# test_gather_misses_no_reader compares our gradient with our forward.
TORCHS_GRADIENT_IS_WRONG = [CASES["same size by a factor other than 1"], CASES["one axis the same"]]
KINDS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear"},
    "antialiased": {"mode": "bilinear", "antialias": True},
    "nearest": {"mode": "nearest"},
    "nearest-exact": {"mode": "nearest-exact"},
    "area": {"mode": "area"},
}


def ours(x: torch.Tensor, **options: Any) -> torch.Tensor:
    return tnn.interpolate(x, **{"mode": "bilinear"} | options)


def torchs(x: torch.Tensor, **options: Any) -> torch.Tensor:
    """F.interpolate, on the CPU where torch's GPU code differs.

    On a GPU, deterministic bilinear interpolation is a decomposition with its own rounding and strides, and the gradient of
    "nearest" follows the factor along an axis of equal size.
    """
    options = {"mode": "bilinear"} | options
    resize = F.interpolate if options.get("antialias") or options["mode"] == "area" else on_a_cpu(F.interpolate)
    return resize(x, **options)


@pytest.mark.parametrize("case", named(CASES))
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch(kind: str, case: tuple[tuple[int, ...], dict[str, Any]]) -> None:
    shape, options = case
    if kind == "antialiased" and case in TORCHS_GRADIENT_IS_WRONG:
        y, expected = (resize(randn(*shape), **options, **KINDS[kind]) for resize in (ours, on_a_cpu(torchs)))
        torch.testing.assert_close(y, expected)
    elif "align_corners" in options and KINDS[kind]["mode"] != "bilinear":
        raises_like(torchs, ours, randn(*shape), **options, **KINDS[kind])
    else:
        check(ours, torchs, randn(*shape), **options, **KINDS[kind])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    def torchs_or_by_float32(x: torch.Tensor, **options: Any) -> torch.Tensor:
        if kind == "antialiased" and x.dtype.itemsize == 2 and x.device.type == "cpu":  # only CUDA has 16 bits
            return torchs(x.float(), **options).to(x.dtype)
        return torchs(x, **options)

    for size in ((9, 11), (3, 2)):
        check(ours, torchs_or_by_float32, randn(*SMALL, dtype=dtype), size=size, **KINDS[kind])
        if KINDS[kind]["mode"] == "bilinear":
            check(ours, torchs_or_by_float32, randn(*SMALL, dtype=dtype), size=size, align_corners=True, **KINDS[kind])


@pytest.mark.parametrize("kind", ["nearest", "nearest-exact"])
def test_bytes_are_copied(kind: str) -> None:
    x = torch.randint(256, SMALL, dtype=torch.uint8, device=DEVICE)
    assert torch.equal(ours(x, size=(9, 3), **KINDS[kind]), torchs(x, size=(9, 3), **KINDS[kind]))


@pytest.mark.parametrize("kind", ["bilinear", "antialiased"])
def test_bytes_are_rounded_once(kind: str) -> None:
    """To nearest. torch's bytes are off by up to one, because it rounds after each axis."""
    x = torch.randint(256, (2, 3, 11, 7), dtype=torch.uint8)
    for size in ((22, 14), (5, 4), (8, 13)):
        exact = torchs(x.double(), size=size, **KINDS[kind])
        y = ours(x.to(DEVICE), size=size, **KINDS[kind]).cpu()
        assert y.dtype == torch.uint8 and (y.double() - exact).abs().max() <= 0.5 + 1e-4
        assert (y.int() - torchs(x, size=size, **KINDS[kind]).int()).abs().max() <= 1


LAYOUTS = {
    "channels_last": lambda: randn(2, 5, 4, 3).contiguous(memory_format=torch.channels_last),
    "channels_last, 3 channels": lambda: randn(2, 3, 4, 3).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: randn(2, 5, 3, 4).transpose(2, 3),
    "every second row": lambda: randn(2, 5, 8, 3)[:, :, ::2],
    "expanded": lambda: randn(1, 5, 4, 3).expand(2, 5, 4, 3),
    "one pixel: strides of any memory format": lambda: randn(3, 1, 1, 1),
}


@pytest.mark.parametrize("layout", named(LAYOUTS))
@pytest.mark.parametrize("kind", KINDS)
def test_layouts(kind: str, layout: Any) -> None:
    check(ours, torchs, layout(), scale_factor=2, **KINDS[kind])


PASSES: dict[str, tuple[Any, Any, tuple[bool, ...]]] = {
    "bilinear": (ops.bilinear2d_forward, ops.bilinear2d_backward, (False,)),
    "aligned": (ops.bilinear2d_forward, ops.bilinear2d_backward, (True,)),
    "antialiased": (ops.antialias2d_forward, ops.antialias2d_backward, (False,)),
    "antialiased, aligned": (ops.antialias2d_forward, ops.antialias2d_backward, (True,)),
    "nearest": (ops.nearest2d_forward, ops.nearest2d_backward, (False,)),
    "nearest-exact": (ops.nearest2d_forward, ops.nearest2d_backward, (True,)),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long) if kind == "antialiased, aligned" else kind for kind in PASSES]
)
def test_gather_misses_no_reader(kind: str, large_tiles: None) -> None:
    """The matrix of the backward is the transposed matrix of the forward, bit for bit.

    The cases have sizes alone, factors with their sizes, and factors with other sizes.
    """
    cases: list[tuple[int, int, float | None]] = [
        (size, out, None) for size in (1, 2, 3, 7, 12) for out in (1, 2, 3, 5, 8, 14, 29, 36)
    ]
    cases += [(size, math.floor(size * f), f) for size in (2, 5, 9) for f in (0.6, 0.77, 1.01, 1.3, 2.1, 3.7)]
    cases += [(5, 9, 1 / 3), (9, 5, 10.0), (5, 9, 8.0), (4, 6, 1.0)]
    forward, backward, variant = PASSES[kind]
    for size, out, factor in cases:
        arguments = (factor, 1.0) if factor else (), *variant
        to_y = forward(identity(size), (out, 1), *arguments).view(size, out)
        to_x = backward(identity(out), (size, 1), *arguments).view(out, size)
        assert torch.equal(to_y, to_x.T), (size, out, factor)


def identity(size: int) -> torch.Tensor:
    """`size` images of one column. Image i has a one in row i."""
    return torch.eye(size, device=DEVICE).view(size, 1, size, 1)


@pytest.mark.parametrize("kind", PASSES)
def test_readers_of_long_axes(kind: str) -> None:
    """The weights of each output add up to 1, also where rounding moves a coordinate across a pixel."""
    _, backward, variant = PASSES[kind]
    for size, out in ((3, 400), (997, 2991), (2991, 997), (1000, 1001)):
        y = torch.ones(1, 1, 1, out, device=DEVICE)
        dx = backward(y, (1, size), (), *variant)
        assert abs(dx.sum().item() - out) <= 1e-5 * out, (size, out)  # one missing reader costs 3e-4 or more


def test_adjoint() -> None:
    """<up(x), y> = <x, backward(y)>."""
    x, y = randn(1, 2, 5, 6, dtype=torch.float64).requires_grad_(), randn(1, 2, 8, 17, dtype=torch.float64)
    (dx,) = torch.autograd.grad(ours(x, size=(8, 17)), x, y)
    torch.testing.assert_close((ours(x, size=(8, 17)) * y).sum(), (x * dx).sum(), rtol=1e-13, atol=1e-13)


def test_keeps_ramps() -> None:
    """A linear image stays linear, exactly between aligned corners."""
    ramp = torch.arange(5.0, dtype=torch.float64, device=DEVICE).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    expected = torch.linspace(0, 4, 9, dtype=torch.float64, device=DEVICE).expand(1, 1, 3, 9)
    torch.testing.assert_close(ours(ramp, size=(3, 9), align_corners=True), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_spread_like_torchs(kind: str) -> None:
    """A neighbour of weight 0 counts: 0 * NaN is NaN."""
    x = torch.tensor([[[[1.0, float("inf"), 2.0], [3.0, float("nan"), 5.0], [1.0, 2.0, 3.0]]]], device=DEVICE)
    for size in ((3, 6), (6, 6), (3, 3), (2, 2)):
        got, expected = (resize(x, size=size, **KINDS[kind]) for resize in (ours, on_a_cpu(torchs)))
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.fixture
def exact_fma(monkeypatch: pytest.MonkeyPatch) -> None:
    """tl.fma rounds once, as on a GPU. The interpreter rounds the product too."""
    if INTERPRETED:
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
            exact = x.data.astype("float64") * y.data + z.data
            return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, "create_fma", fma)


@pytest.mark.parametrize(("size", "out"), [((2, 5001), (2, 4096)), ((5001, 2), (4096, 2)), ((2, 5003), (2, 8192))])
def test_antialiasing_weights_on_long_axes(
    size: tuple[int, int], out: tuple[int, int], large_tiles: None, exact_fma: None
) -> None:
    """The centre of an output needs more bits than float32 has; its distance from a pixel does not.

    The scale is exact in float32. Rounded centres cause a mean error of 5e-5. The maximum is larger, because rounding may leave
    out a pixel at the edge of an output.
    """
    x = randn(1, 1, *size).requires_grad_()
    exact = x.detach().cpu().double().requires_grad_()
    y, expected = ours(x, size=out, antialias=True), torchs(exact, size=out, antialias=True)
    dy = randn(1, 1, *out, seed=1)
    (dx,), (expected_dx,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, exact, dy.cpu().double())
    for got, value in ((y, expected), (dx, expected_dx)):
        assert (got.cpu() - value).abs().mean() < 1e-6


def test_sixteen_bit_gradients_are_summed_in_float32() -> None:
    """2,048 plus eight ones is 2,056; a sum in float16 stays at 2,048."""
    dy = torch.ones(1, 1, 1, 9, dtype=torch.float16, device=DEVICE)
    dy[..., 0] = 2048
    assert ops.bilinear2d_backward(dy, (1, 1), (), False).item() == 2056


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
@pytest.mark.parametrize("kind", ["bilinear", "antialiased", "nearest"])
def test_errors(kind: str, case: tuple[tuple[int, ...], dict[str, Any]]) -> None:
    shape, options = case
    if len(shape) == 3 and kind == "nearest":  # for torch, a signal of one axis
        with pytest.raises(NotImplementedError, match="4D"):
            ours(randn(*shape), **options, **KINDS[kind])
    else:
        raises_like(torchs, ours, randn(*shape), **options, **KINDS[kind])


def test_missing_modes_and_dtypes_raise() -> None:
    for kind in KINDS.values():
        raises_like(torchs, ours, randn(*SMALL).int(), scale_factor=2, **kind)
    for mode in ("bicubic", "linear", "trilinear", "lanczos"):
        with pytest.raises(NotImplementedError, match="one of nearest, nearest-exact, bilinear, area"):
            tnn.interpolate(randn(*SMALL), scale_factor=2, mode=mode)
    for kind in (KINDS["nearest"], KINDS["area"]):
        raises_like(torchs, ours, randn(*SMALL), size=3, antialias=True, **kind)
        raises_like(torchs, ours, randn(*SMALL), size=3, align_corners=False, **kind)


@pytest.mark.parametrize("factor", [1.05, 2.00001, (2.04, 1.0)])
def test_nearest_factor_near_an_integer(factor: Any) -> None:
    """If a size stays equal or doubles, torch on the CPU copies each pixel, whatever the factor."""
    options = {"scale_factor": factor, "recompute_scale_factor": False, "mode": "nearest"}
    x = randn(1, 2, 7, 9).requires_grad_()
    exact = x.detach().cpu().requires_grad_()
    y, expected = tnn.interpolate(x, **options), F.interpolate(exact, **options)
    assert torch.equal(y.cpu(), expected)
    dy = randn(*y.shape, seed=1)
    (dx,), (expected_dx,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, exact, dy.cpu())
    torch.testing.assert_close(dx.cpu(), expected_dx)
