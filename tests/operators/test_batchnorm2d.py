"""Batch normalisation: layouts, dtypes, statistics, derivatives, errors. hard_inputs/batchnorm2d.py has more inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, LEAST_EPS, check, error, gradients, raises_like, randn
from trinn.kernels import ops
from trinn.kernels.device.walk import plan_walk
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.settings import settings

CASES = {
    "plain": lambda: randn(3, 5, 4, 6),
    "several splits, each of several tiles": lambda: randn(9, 2, 23, 31),
    "one image, one channel, a tile and one pixel": lambda: randn(1, 1, 27, 19),
    "one image, one channel, two tiles and one pixel": lambda: randn(1, 1, 41, 25),
    "channels past one tile": lambda: randn(2, 70, 3, 3),
    "small planes: several images in a tile": lambda: randn(150, 3, 2, 1),
    "no plane": lambda: randn(40, 7),
    "sequences": lambda: randn(5, 3, 11),
    "three axes of pixels": lambda: randn(2, 3, 2, 3, 4),
    "two values per channel": lambda: randn(2, 3, 1, 1),
    "empty batch": lambda: randn(0, 3, 4, 5),
    "no rows": lambda: randn(2, 3, 0, 5),
    "empty channels_last": lambda: randn(0, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "channels_last": lambda: randn(3, 5, 4, 6).contiguous(memory_format=torch.channels_last),
    "channels_last, several splits": lambda: randn(9, 2, 23, 31).contiguous(memory_format=torch.channels_last),
    "channels_last, channels past one tile": lambda: randn(2, 70, 3, 3).contiguous(memory_format=torch.channels_last),
    "channels_last, every second channel": lambda: randn(3, 6, 5, 4).contiguous(memory_format=torch.channels_last)[:, ::2],
    "channels_last, every second column": lambda: randn(3, 4, 4, 9).contiguous(memory_format=torch.channels_last)[..., ::2],
    "sequences with channels last": lambda: randn(4, 9, 3).transpose(1, 2),
    "images innermost": lambda: randn(3, 4, 6, 5).permute(3, 1, 0, 2),
    "transposed planes": lambda: randn(2, 3, 5, 4).mT,
    "every second row and column": lambda: randn(2, 3, 9, 8)[:, :, 1::2, ::2],
    "expanded": lambda: randn(1, 3, 1, 5).expand(2, 3, 4, 5),
    "storage offset off the alignment": lambda: randn(121)[1:].view(2, 3, 4, 5),
}
MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def statistics(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random running statistics for x, on its device."""
    channels = x.shape[1]
    return randn(channels, seed=3).to(x.device, dtype), randn(channels, seed=4).square().to(x.device, dtype) + 0.5


def parameters(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    dtype = dtype or x.dtype
    return randn(x.shape[1], dtype=dtype, seed=1), randn(x.shape[1], dtype=dtype, seed=2)


def tracked(batch_norm: Callable[..., Tensor], **options: Any) -> Callable[..., tuple[Tensor, ...]]:
    """The operator as a function of x, weight and bias. It also returns the running statistics."""

    def function(x: Tensor, w: Tensor | None = None, b: Tensor | None = None) -> tuple[Tensor, ...]:
        given = w if w is not None else b if b is not None else x
        mean, var = statistics(x, given.dtype)
        return batch_norm(x, mean, var, w, b, **options), mean, var

    return function


def with_a_weight(x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, **options: Any) -> Tensor:
    """F.batch_norm with a weight of ones for a bias alone: on a GPU, torch's gradient would raise."""
    w = torch.ones_like(b) if w is None and b is not None and x.is_cuda else w
    return F.batch_norm(x, mean, var, w, b, **options)


def check_batch_norm(x: Tensor, w: Tensor | None, b: Tensor | None, **options: Any) -> None:
    check(tracked(tnn.batch_norm, **options), tracked(with_a_weight, **options), x, w, b)


@MODES
@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case: Callable[[], Tensor], training: bool) -> None:
    x = case()
    check_batch_norm(x, *parameters(x), training=training)


@MODES
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, training: bool) -> None:
    x = CASES["plain"]().to(dtype)
    check_batch_norm(x, *parameters(x), training=training)


@MODES
def test_float64_over_several_splits(training: bool) -> None:
    """Sums of thousands of numbers, with a fixed tolerance in place of the rule of tests/support/check.py.

    The rule does not apply: torch's float64 sums are no more exact than ours, and on a CPU torch sums float32 in float64.
    """
    x = CASES["channels_last, several splits"]().double()
    ours, torchs = (
        gradients(lambda *t, f=f: tracked(f, training=training)(*t)[0] ** 3, x, *parameters(x))
        for f in (tnn.batch_norm, F.batch_norm)
    )
    for got, expected in zip(ours, torchs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-13 * float(expected.abs().max()), rtol=1e-12)


@MODES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_with_float32_parameters(dtype: torch.dtype, training: bool) -> None:
    """The output has the dtype of the input. The gradients of weight and bias have the dtype of the parameters."""
    x = CASES["plain"]().to(dtype)
    check_batch_norm(x, *parameters(x, torch.float32), training=training)
    w = parameters(x, torch.float32)[0].requires_grad_()
    y = tnn.batch_norm(x, *statistics(x, torch.float32), w, training=training)
    (dw,) = torch.autograd.grad(y.sum(), w)
    assert y.dtype == dtype and dw.dtype == torch.float32


@MODES
@pytest.mark.parametrize("given", ["weight", "bias", "neither"])
def test_partly_affine(given: str, training: bool) -> None:
    x = CASES["plain"]()
    w, b = parameters(x)
    check_batch_norm(x, w if given == "weight" else None, b if given == "bias" else None, training=training)


@MODES
def test_any_strides_of_the_vectors(training: bool) -> None:
    x = CASES["plain"]()
    w, b = randn(10, seed=1)[::2], randn(1).expand(5)
    running = randn(15).square()[::3], randn(5, 2).square()[:, 1]
    # cuDNN updates a copy of strided running statistics, and loses it.
    mean, var = (statistic.clone(memory_format=torch.contiguous_format) for statistic in running)
    y, expected = tnn.batch_norm(x, *running, w, b, training), F.batch_norm(x, mean, var, w, b, training)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(running, (mean, var))
    torch.testing.assert_close(tnn.batch_norm(x, *running, w.view(5, 1), b.reshape(1, 5), training), expected)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1, 1.5, -0.5])
def test_momentum(momentum: float) -> None:
    """The running variance moves towards the unbiased variance. With two values that is twice the biased one."""
    x = CASES["two values per channel"]()
    check_batch_norm(x, *parameters(x), training=True, momentum=momentum)


@MODES
def test_eps(training: bool) -> None:
    x = CASES["plain"]() * 1e-3
    check_batch_norm(x, *parameters(x), training=training, eps=1e-2)
    check_batch_norm(x, *parameters(x), training=training, eps=1e-2 if training else LEAST_EPS)


def test_no_running_statistics() -> None:
    x = CASES["plain"]()
    check(tnn.batch_norm, lambda x, *p, **o: F.batch_norm(x, *p, **o), x, None, None, *parameters(x), training=True)


@MODES
@pytest.mark.parametrize("wanted", ["all", "input", "weight and bias"])
def test_gradcheck(wanted: str, training: bool) -> None:
    x = randn(3, 2, 2, 2, dtype=torch.float64)
    w, b = parameters(x)

    def function(*tensors: Tensor) -> Tensor:
        inputs = (x, *tensors) if wanted == "weight and bias" else tensors
        return tracked(tnn.batch_norm, training=training)(*inputs)[0] ** 2

    tensors = {"all": (x, w, b), "input": (x,), "weight and bias": (w, b)}[wanted]
    tensors = tuple(t.clone().requires_grad_() for t in tensors)
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


def test_second_derivative_of_mixed_dtypes() -> None:
    """All of it is in float32: no intermediate value with the dtype of the parameters is rounded to the input's 16 bits."""
    x = CASES["plain"]().bfloat16()
    w, dy, ddx, ddw = parameters(x, torch.float32)[0], randn(*x.shape, seed=5).bfloat16(), x.flip(0), randn(5, seed=6)

    def second(batch_norm: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        x, w, dy, ddx, ddw = (t.detach().requires_grad_() for t in tensors)
        first = torch.autograd.grad(batch_norm(x, None, None, w, training=True), (x, w), dy, create_graph=True)
        return torch.autograd.grad(first, (x, w, dy), (ddx, ddw))

    expected = second(F.batch_norm, *(t.double().cpu() for t in (x, w, dy, ddx, ddw)))
    for got, exact, like in zip(second(tnn.batch_norm, x, w, dy, ddx, ddw), expected, (x, w, dy), strict=True):
        assert got.dtype == like.dtype
        assert error(got, exact) < (5e-3 if got.dtype == torch.bfloat16 else 1e-5) * float(exact.abs().max())


@MODES
def test_third_derivative(training: bool) -> None:
    """The gradient of the gradient can itself be differentiated."""
    x = randn(3, 2, 2, dtype=torch.float64).requires_grad_()
    w = parameters(x)[0].requires_grad_()

    def gradient(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        y = tracked(tnn.batch_norm, training=training)(x, w)[0]
        return torch.autograd.grad((y**3).sum(), (x, w), create_graph=True)

    assert gradgradcheck(gradient, (x, w), fast_mode=True)


@MODES
@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["input", "weight", "bias"])
def test_skips_unwanted_gradients(wanted: int, training: bool) -> None:
    x = CASES["plain"]()
    tensors = [x, *parameters(x)]
    tensors[wanted].requires_grad_()
    results = []
    for batch_norm in (tnn.batch_norm, F.batch_norm):
        (gradient,) = torch.autograd.grad((tracked(batch_norm, training=training)(*tensors)[0] ** 2).sum(), tensors[wanted])
        results.append(gradient)
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-5)


def test_later_training_does_not_change_a_frozen_gradient() -> None:
    """The backward of an evaluation uses the statistics of its forward, even after a training step has moved them."""
    x = CASES["plain"]().requires_grad_()
    module = tnn.BatchNorm2d(5).to(DEVICE).eval()
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    y = module(x)
    module.train()(3 * x)
    (got,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(got, expected)


def test_trains_twice_before_one_backward() -> None:
    """A second forward moves the running statistics. That does not invalidate the tensors saved by the first."""
    module, torchs = tnn.BatchNorm2d(5).to(DEVICE), torch.nn.BatchNorm2d(5).to(DEVICE)
    x = CASES["plain"]().requires_grad_()
    ours, expected = (torch.autograd.grad((m(x) * m(2 * x)).sum(), x)[0] for m in (module, torchs))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_mean_far_from_zero(mean: float, memory_format: torch.memory_format) -> None:
    """The mean square is up to 1e12 and the variance 1: their difference in float32 would have no correct digit."""
    x = (randn(9, 2, 23, 31) + mean).contiguous(memory_format=memory_format)
    got_mean, got_var = ops.batchnorm2d_statistics(x)
    expected = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(got_mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(got_var.double(), expected, rtol=2e-3 if mean == 1e6 else 1e-5, atol=0)
    y = tnn.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(y.double().std((0, 2, 3)), torch.ones_like(expected), rtol=1e-3, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_16_bits_are_in_float32(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """The pixels have 16 bits. Their mean, variance and sums are float32, and as exact as for float32 pixels."""
    x = (randn(9, 2, 23, 31) + 20).to(dtype).contiguous(memory_format=memory_format)
    dy, exact = randn(*x.shape, seed=1).to(dtype), x.double()
    mean, var = ops.batchnorm2d_statistics(x)
    sums = ops.batchnorm2d_sums(x, dy, mean, var, 0.0)
    z = (exact - exact.mean((0, 2, 3), keepdim=True)) / exact.var((0, 2, 3), correction=0, keepdim=True).sqrt()
    expected = exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0), (dy * z).sum((0, 2, 3)), dy.double().sum((0, 2, 3))
    for got, value in zip((mean, var, *sums), expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), value, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_variance_between_tiles(memory_format: torch.memory_format) -> None:
    """Tiles and splits have different means, so most of the variance is between them. The first tile does not show it."""
    x = randn(16, 2, 23, 31)
    x[0] *= 1e-3
    x[3:] += 1e3
    x[9:] *= -2
    x = x.contiguous(memory_format=memory_format)
    expected = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(ops.batchnorm2d_statistics(x)[1].double(), expected, rtol=1e-6, atol=0)


def normalised(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A training step without running statistics."""
    return tnn.batch_norm(x, None, None, w, b, training=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(64, 1, 56, 56), (32, 1, 112, 112), (64, 3, 224, 224), (2, 16, 512, 512), (64, 64, 56, 56)])
def test_few_channels_fill_a_gpu(
    shape: tuple[int, ...], memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tiles of a GPU, each channel has enough splits for one program on every multiprocessor."""
    monkeypatch.setattr(settings, "wanted_programs", 264)
    monkeypatch.setattr(tuning, "elementwise_block", lambda elements: 1024)
    assert plan_walk(torch.empty(shape, device="meta", memory_format=memory_format), sums=True).programs >= 90


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 40, 14, 14), (5, 70, 7, 7), (2, 2, 65, 63), (8, 96, 3, 3)])
def test_tiles_of_a_gpu(shape: tuple[int, ...], memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole planes in one tile, parts of a plane, a channel count that no tile divides, prefetched tiles."""
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(tuning, "elementwise_block", lambda elements: 1024)
    x = randn(*shape).contiguous(memory_format=memory_format)
    check_batch_norm(x, *parameters(x), training=True)


def test_constant_channel() -> None:
    """The output is exactly the bias, and gradients are finite. Sums of the constants are rounded, but the mean is exact."""
    constants = torch.tensor([0.1, -0.7, 1e8 / 3, 123456789.0, 1e10 / 7, 3e12 / 7], device=DEVICE)
    x = constants[:, None, None].expand(9, 6, 23, 31)
    w, b = parameters(x)
    mean, var = ops.batchnorm2d_statistics(x)
    assert torch.equal(mean, constants) and float(var.min()) >= 0 and float((var / constants.square()).max()) < 1e-12
    assert torch.equal(tnn.batch_norm(x, None, None, w, b, training=True), b[:, None, None].expand_as(x))
    assert all(g.isfinite().all() for g in gradients(normalised, x, w, b))


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_special_values() -> None:
    """Large float16 values do not overflow. A NaN or an infinity changes its own channel only."""
    x = CASES["plain"]().half() * 1e-2 + 3e4
    assert tnn.batch_norm(x, None, None, training=True).isfinite().all()
    for value in (float("nan"), float("inf")):
        x = CASES["plain"]()
        x[1, 2, 3, 4] = value
        y = tnn.batch_norm(x, None, None, training=True)
        assert torch.equal(y.isnan().all((0, 2, 3)), torch.arange(5, device=DEVICE) == 2) and y.isnan().sum() == y[:, 2].numel()


def test_int32_and_int64_offsets_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU uses int32 for small tensors. The interpreter checks each int32 operation for overflow."""
    from trinn.kernels import batchnorm2d as kernels

    x = CASES["channels_last, every second channel"]()
    results = []
    for index in (tl.int32, tl.int64):
        monkeypatch.setattr(kernels, "index_type", lambda *_, index=index: index)
        results.append(gradients(normalised, x, *parameters(x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


X = (2, 3, 4, 5)
# Sizes of the input, running_mean, running_var, weight and bias; options.
ERRORS: dict[str, tuple[Any, ...]] = {
    "one value per channel": ((1, 3, 1, 1), 3, 3, 3, 3, {"training": True}),
    "one value per channel, no plane": ((1, 3), 3, 3, 3, 3, {"training": True}),
    "no axis": ((), 3, 3, 3, 3, {}),
    "no axis, training": ((), None, None, None, None, {"training": True}),
    "one axis": ((3,), 3, 3, 3, 3, {}),
    "one axis, training": ((3,), 3, 3, 3, 3, {"training": True}),
    "no statistics": (X, None, None, 3, 3, {}),
    "no running_mean": (X, None, 3, 3, 3, {}),
    "no running_var": (X, 3, None, 3, 3, {}),
    "no running_mean, training": (X, None, 3, 3, 3, {"training": True}),
    "no running_var, training": (X, 3, None, 3, 3, {"training": True}),
    "running_mean too long": (X, 4, 3, 3, 3, {"training": True}),
    "running_var too short": (X, 3, 2, 3, 3, {}),
    "weight too long": (X, 3, 3, 4, 3, {}),
    "bias too short": (X, 3, 3, 3, 2, {"training": True}),
    "running_mean of two axes": (X, (3, 1), 3, 3, 3, {}),
    "eps 0, training": (X, 3, 3, 3, 3, {"training": True, "eps": 0.0}),
    "negative eps": (X, 3, 3, 3, 3, {"eps": -1e-5}),
    "momentum None": (X, 3, 3, 3, 3, {"momentum": None}),
    "momentum of letters": (X, 3, 3, 3, 3, {"momentum": "a"}),
    "eps of letters": (X, 3, 3, 3, 3, {"eps": "a"}),
}


@pytest.mark.parametrize("case", named(ERRORS))
def test_errors(case: tuple[Any, ...]) -> None:
    shape, *sizes, options = case
    vectors = (None if s is None else randn(*(s if isinstance(s, tuple) else (s,))) for s in sizes)
    raises_like(F.batch_norm, tnn.batch_norm, randn(*shape), *vectors, **options)


# Dtypes of the input, the running statistics, weight and bias.
MIXED = {
    "float64 statistics": ("float32", "float64", "float32", "float32"),
    "bfloat16 parameters": ("float32", "float32", "bfloat16", "bfloat16"),
    "bfloat16 everything but the input": ("float32", "bfloat16", "bfloat16", "bfloat16"),
    "float32 statistics, bfloat16 parameters": ("bfloat16", "float32", "bfloat16", "bfloat16"),
    "bfloat16 statistics, float32 parameters": ("bfloat16", "bfloat16", "float32", "float32"),
    "float32 parameters of float64": ("float64", "float32", "float32", "float32"),
    "weight and bias differ": ("float16", "float32", "float32", "float16"),
    "two kinds of 16 bits": ("float16", "bfloat16", "bfloat16", "bfloat16"),
    "integer input": ("int32", "float32", "float32", "float32"),
    "complex input": ("complex64", "float32", "float32", "float32"),
    "integer statistics": ("float32", "int64", "float32", "float32"),
}


@MODES
@pytest.mark.parametrize("dtypes", named(MIXED))
def test_mixed_dtypes(dtypes: tuple[str, ...], training: bool) -> None:
    x, statistic, w, b = (getattr(torch, dtype) for dtype in dtypes)
    vectors = (torch.ones(3, dtype=dtype, device=DEVICE) for dtype in (statistic, statistic, w, b))
    raises_like(F.batch_norm, tnn.batch_norm, torch.ones(X, dtype=x, device=DEVICE), *vectors, training=training)


def test_other_errors() -> None:
    x, mean, var = randn(*X), randn(3), randn(3).square()
    raises_like(F.batch_norm, tnn.batch_norm, x, mean.to("meta"), var.to("meta"))
    raises_like(F.batch_norm, tnn.batch_norm, x, mean, var, randn(3).to("meta"))
    raises_like(F.batch_norm, tnn.batch_norm, x, mean.requires_grad_(), var)
    for ours, torchs, shape in (
        (tnn.BatchNorm2d, torch.nn.BatchNorm2d, (2, 3, 4)),
        (tnn.BatchNorm2d, torch.nn.BatchNorm2d, (1, 3, 1, 1)),
        (tnn.BatchNorm1d, torch.nn.BatchNorm1d, (2, 3, 4, 5)),
        (tnn.BatchNorm2d, torch.nn.BatchNorm2d, (2, 4, 4, 5)),
    ):
        raises_like(torchs(3).to(DEVICE), ours(3).to(DEVICE), randn(*shape))
    raises_like(
        torch.nn.BatchNorm2d(3, track_running_stats=False).eval(), tnn.BatchNorm2d(3, track_running_stats=False).eval(),
        randn(1, 3, 1, 1),
    )  # fmt: skip


MODULES = {
    "default": {},
    "momentum None: cumulative average": {"momentum": None},
    "not affine": {"affine": False},
    "statistics not tracked": {"track_running_stats": False},
    "momentum and eps": {"momentum": 0.5, "eps": 1e-3},
}


@pytest.mark.parametrize("options", named(MODULES))
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d"])
def test_module_is_torchs(name: str, options: dict[str, Any]) -> None:
    """Signature, state_dict and repr are torch's, and outputs and buffers in training, with an empty batch, and evaluation."""
    ours, torchs = (getattr(nn, name)(5, **options).to(DEVICE) for nn in (tnn, torch.nn))
    assert repr(ours) == repr(torchs) and "__init__" not in vars(type(ours))
    torchs.load_state_dict(ours.state_dict(), strict=True)
    plane = (4, 6) if name == "BatchNorm2d" else ()
    for step, batch in enumerate((3, 0, 7, 3)):
        if step == 3:
            ours.eval(), torchs.eval()
        x = randn(batch, 5, *plane) + step
        torch.testing.assert_close(ours(x), torchs(x))
        for key, value in torchs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, msg=f"{key}, {step}")


def test_cumulative_average() -> None:
    """After batches with means 1, 2 and 6, the running means are 1, 1.5 and 3."""
    module = tnn.BatchNorm1d(1, momentum=None).to(DEVICE)
    means = []
    for mean in (1.0, 2.0, 6.0):
        module(torch.tensor([[mean - 1], [mean + 1]], device=DEVICE))
        means.append(module.state_dict()["running_mean"].item())
    assert means == pytest.approx([1, 1.5, 3])


def test_tracking_switched_off() -> None:
    """The module then normalises a training batch with the batch's own statistics, and leaves its buffers unchanged."""
    ours, torchs = (nn.BatchNorm2d(5).to(DEVICE) for nn in (tnn, torch.nn))
    for module in (ours, torchs):
        module.track_running_stats = False
    x = CASES["plain"]() + 1
    torch.testing.assert_close(ours(x), torchs(x))
    assert not ours.running_mean.any() and ours.num_batches_tracked == 0
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def test_no_channels() -> None:
    x = randn(2, 0, 4, 5)
    assert tnn.batch_norm(x, None, None, training=True).stride() == F.batch_norm(x, None, None, training=True).stride()
