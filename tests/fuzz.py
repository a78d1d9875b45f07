"""Random cases of each operator: `make fuzz`.

For each operator hypothesis draws a geometry, valid for torch or not, all options, the dtype, the memory layout of the tensors
and of the upstream gradient, and values with ties, zeros, NaN, infinities and extremes. If torch raises, trinn must raise the
same exception. Otherwise outputs, strides and all gradients must equal torch's in float64. Only the differences in
docs/differences.md are exempt.

A drawn case may have one or two elements, too few for the rule of support/check.py: torch may be exact by chance. So errors of
a few units in the last place are allowed as well, relative to the larger of the largest value and 1; for means of subnormal
values, relative to the smallest normal number.
"""

import argparse
import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, note, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import trinn.layers as tnn
from tests import evidence
from tests.support.check import DEVICE, DTYPES, close, error, randn, run
from tests.support.tma import tma_everywhere
from trinn.kernels.runtime import settings as runtime
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.layout import is_channels_last


class Case(NamedTuple):
    """A call of trinn and of torch with the same tensors."""

    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    tensors: list[Tensor | None]
    options: dict[str, Any]
    condition: float = 1.0  # condition number of the sums: the size of the addends relative to the sum
    moves: bool = False  # each result is a copy of an input value, so results are exact
    subnormal: bool = False  # outputs are subnormal
    more_nan: tuple[str, ...] = ()  # results with more NaN than torch, by docs/differences.md
    fewer_nan: tuple[str, ...] = ()  # results with fewer NaN than torch


class Drawing:
    """Draws the parts of a case."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.dtype = self.one_of(*DTYPES)
        self.count = 0
        self.layouts: tuple[str, ...] = ("contiguous", "channels_last", "transposed", "sliced", "offset", "expanded", "one")

    def number(self, least: int, most: int) -> int:
        return self.data.draw(st.integers(least, most))

    def one_of(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))

    def seldom(self) -> bool:
        return self.number(0, 7) == 7

    def pair(self, least: int, most: int) -> Any:
        """A number or a pair."""
        first = self.number(least, most)
        return first if self.number(0, 1) else (first, self.number(least, most))

    def tensor(self, shape: tuple[int, ...], values: str = "normal") -> Tensor:
        """A tensor of this shape with values of one kind, in a drawn layout."""
        self.count += 1
        tensor = values_of(values, shape, self.dtype, self.count)
        return laid_out(tensor, self.one_of(*self.layouts))

    def image(self, values: str = "normal", channels: int | None = None) -> Tensor:
        """(N, C, H, W), sometimes with N = 0 or without N."""
        shape = self.number(1, 3), channels or self.number(1, 5), self.number(1, 9), self.number(1, 9)
        if self.seldom():
            shape = (0, *shape[1:])
        return self.tensor(shape[1:] if self.seldom() else shape, values)

    def values_to_move(self) -> str:
        """Any kind of values, for operators that only move values."""
        # The interpreter flushes subnormal bfloat16 to 0.
        kinds = ("subnormal",) if not (INTERPRETED and self.dtype == torch.bfloat16) else ()
        return self.one_of("normal", "ties", "zeros", "NaN", "infinities", "huge", *kinds)

    def values_to_average(self) -> str:
        """A kind of values for averaging operators."""
        kinds = () if INTERPRETED and self.dtype == torch.bfloat16 else ("subnormal",)
        return self.one_of("normal", "ties", "zeros", "NaN", "infinities", *kinds)

    def values_to_sum(self) -> str:
        """A kind of values for summing operators."""
        return self.one_of("normal", "ties", "zeros", "NaN", "infinities")


def values_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype, number: int) -> Tensor:
    tensor = randn(*shape, dtype=dtype, seed=number)
    if kind == "ties":
        return tensor.round()
    chosen = randn(*shape, seed=number + 50) > 1
    if kind == "zeros":
        return torch.where(chosen, torch.tensor(-0.0, dtype=dtype, device=DEVICE), (tensor > 0).to(dtype))
    if kind == "NaN":
        return tensor.masked_fill(chosen, float("nan"))
    if kind == "infinities":
        return torch.where(chosen, tensor.sign() * float("inf"), tensor)
    if kind == "subnormal":
        return tensor * torch.finfo(dtype).tiny
    if kind == "huge":
        return tensor * (torch.finfo(dtype).max / 8)
    return tensor


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]
    if layout == "offset":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    if layout == "expanded" and tensor.dim() > 1 and tensor.shape[0] > 0:
        return tensor[:1].expand(tensor.shape)
    if layout == "one" and tensor.numel() > 0:
        return tensor.flatten()[0].clone().expand(tensor.shape)
    if layout == "inside NaN" and tensor.dim() == 4:  # aligned for TMA
        around = F.pad(tensor, (2, 1, 1, 2, 8, 16, 1, 1), value=float("nan")).contiguous(memory_format=torch.channels_last)
        return around[1:-1, 8:-16, 1:-2, 2:-1]
    if layout == "images innermost":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    return tensor


class Upstream(torch.autograd.Function):
    """The identity. Its backward copies the upstream gradient into another memory layout."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, layout: str) -> Tensor:
        ctx.layout = layout
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return laid_out(dy, ctx.layout), None


def with_upstream_layout(function: Callable[..., Any], layout: str) -> Callable[..., Any]:
    """The function, with the gradient of its first output in a memory layout."""

    def call(*tensors: Tensor | None, **options: Any) -> Any:
        result = function(*tensors, **options)
        if isinstance(result, tuple):
            return (Upstream.apply(result[0], layout), *result[1:])
        return Upstream.apply(result, layout)

    return call


def conv2d(draw: Drawing) -> Case:
    groups = draw.number(1, 3)
    channels, filters = draw.number(1, 3), draw.number(1, 3)
    if draw.seldom():
        channels = 1
    x = draw.image(draw.values_to_sum(), groups * channels)
    w = draw.tensor((groups * filters, channels, draw.number(1, 4), draw.number(1, 4)), draw.values_to_sum())
    options: dict[str, Any] = {"stride": draw.pair(1, 4), "dilation": draw.pair(1, 4), "groups": groups}
    options["padding"] = draw.one_of("same", "valid") if draw.seldom() else draw.pair(-1 if draw.seldom() else 0, 4)
    bias = draw.tensor((groups * filters + draw.seldom(),)) if draw.number(0, 1) else None
    return Case(tnn.conv2d, F.conv2d, [x, w, bias], options, more_nan=("gradient 0",) * is_not_finite(w))


def is_not_finite(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())


def padded_conv2d(draw: Drawing) -> Case:
    """The convolution of a module with a padding mode."""
    mode, padding = draw.one_of("reflect", "replicate", "circular"), draw.pair(0, 5)
    channels, taps = draw.number(1, 3), draw.number(1, 3)
    x, w = draw.image(channels=channels), draw.tensor((2, channels, taps, taps))

    def through(library: Any) -> Callable[..., Any]:
        module = library.Conv2d(channels, 2, taps, padding=padding, padding_mode=mode, bias=False)
        return lambda x, w: module._conv_forward(x, w, None)

    return Case(through(tnn), through(torch.nn), [x, w], {}, wgrad_condition(x, 10))


def wgrad_condition(x: Tensor, padding: int) -> float:
    """The condition of a filter's gradient, a sum over all pixels. If all pixels are equal, rounding errors add up."""
    images = x.shape[0] if x.dim() == 4 else 1
    return max(1.0, images * (x.shape[-2] + padding) * (x.shape[-1] + padding) / 64)


def conv_transpose2d(draw: Drawing) -> Case:
    groups, channels, filters = draw.number(1, 3), draw.number(1, 3), draw.number(1, 3)
    x = draw.image(draw.values_to_sum(), groups * channels)
    w = draw.tensor((groups * channels, filters, draw.number(1, 4), draw.number(1, 4)), draw.values_to_sum())
    bias = draw.tensor((groups * filters,)) if draw.number(0, 1) else None
    names = {"stride": (1, 3), "padding": (0, 3), "output_padding": (0, 2), "dilation": (1, 3)}
    options = {name: draw.pair(*bounds) for name, bounds in names.items()}
    more_nan = ("output 0",) * is_not_finite(w)
    return Case(tnn.conv_transpose2d, F.conv_transpose2d, [x, w, bias], options | {"groups": groups}, more_nan=more_nan)


class TmaCase(NamedTuple):
    """The geometry of a TMA convolution."""

    groups: int
    channels: int  # per group
    filters: int
    images: int
    size: list[int]
    taps: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]

    def image(self, draw: Drawing, pixels: int) -> Tensor:
        """The input, with fewer images for large results, to limit the interpreter's time."""
        images = min(self.images, max(1, 500 // pixels))
        shape = self.groups * self.channels, *self.size
        return draw.tensor((images, *shape) if draw.number(0, 7) else shape, draw.values_to_sum())


def tma_case(draw: Drawing) -> TmaCase:
    draw.layouts += "inside NaN", "images innermost"
    draw.dtype = draw.one_of(torch.float32, torch.float16, torch.bfloat16)
    torch.backends.cudnn.conv.fp32_precision = draw.one_of("tf32", "ieee")
    kind = draw.number(0, 9)
    if kind < 5:  # one group with enough channels for TMA
        groups, channels, filters = 1, draw.one_of(16, 24, 32, 48), draw.one_of(16, 24, 32, 40, 64)
    elif kind == 5:  # few channels: a window copy
        groups, channels, filters = 1, draw.number(1, 8), draw.one_of(8, 16, 24)
    elif kind == 6:  # groups wide enough for TMA
        groups, channels, filters = draw.number(2, 3), draw.one_of(16, 32), draw.one_of(16, 32)
    elif kind < 9:  # narrow groups, which the launcher merges
        groups, channels, filters = draw.one_of(2, 4, 8), draw.one_of(4, 8), draw.one_of(4, 8, 16)
    else:  # many groups of one or two channels
        groups, channels, filters = 16, draw.number(1, 2), draw.number(2, 3)
    images, size = draw.one_of(1, 2, 3, 7, 16, 17, 18), [draw.number(1, 5), draw.number(1, 5)]
    taps, stride, padding, dilation = ([draw.number(least, least + 3) for _ in range(2)] for least in (1, 1, 0, 1))
    special = draw.number(0, 7)
    if special == 0:  # long rows: wgrad has runs of columns
        images, size = draw.number(1, 2), [draw.number(1, 3), draw.number(8, 40)]
    elif special == 1:  # 1x1 filters: all pixels are contiguous
        size[1], taps, padding, stride = draw.one_of(2, 4, 8), [1, 1], [0, 0], [draw.one_of(1, 1, 2)] * 2
    elif special == 2:  # padding wider than the kernel
        padding = [draw.number(4, 9), draw.number(4, 9)]
    return TmaCase(groups, channels, filters, images, size, taps, stride, padding, dilation)


def conv2d_tma(draw: Drawing) -> Case:
    case = tma_case(draw)
    word = draw.one_of("same", "valid") if draw.seldom() else ""
    padding, stride = [0, 0] if word else case.padding, [1, 1] if word == "same" else case.stride
    room = [n + 2 * p for n, p in zip(case.size, padding, strict=True)]
    taps = (
        case.taps
        if word == "same"
        else [min(t, (n - 1) // d + 1) for t, n, d in zip(case.taps, room, case.dilation, strict=True)]
    )
    x = case.image(draw, room[0] * room[1] // (stride[0] * stride[1]) + 1)
    w = draw.tensor((case.groups * case.filters, case.channels, *taps), draw.values_to_sum())
    bias = draw.tensor(w.shape[:1]) if draw.number(0, 1) else None
    options = {"stride": stride, "padding": word or padding, "dilation": case.dilation, "groups": case.groups}
    more_nan = ("gradient 0",) * is_not_finite(w) + ("gradient 1", "output 0" if is_narrow(case) else "") * is_not_finite(x)
    fewer_nan, torchs = ("output 0",) * is_not_finite(w), torchs_of(F.conv2d, case)
    return Case(tnn.conv2d, torchs, [x, w, bias], options, wgrad_condition(x, 0), more_nan=more_nan, fewer_nan=fewer_nan)


def conv_transpose2d_tma(draw: Drawing) -> Case:
    case = tma_case(draw)
    extra = [min(draw.number(0, 2), max(s, d) - 1) for s, d in zip(case.stride, case.dilation, strict=True)]
    reach = [
        (n - 1) * s + (t - 1) * d + e
        for n, s, t, d, e in zip(case.size, case.stride, case.taps, case.dilation, extra, strict=True)
    ]  # fmt: skip
    padding = [min(p, r // 2) for p, r in zip(case.padding, reach, strict=True)]  # at least one pixel remains
    x = case.image(draw, (reach[0] + 1) * (reach[1] + 1))
    w = draw.tensor((case.groups * case.channels, case.filters, *case.taps), draw.values_to_sum())
    bias = draw.tensor((case.groups * case.filters,)) if draw.number(0, 1) else None
    options = {
        "stride": case.stride,
        "padding": padding,
        "output_padding": extra,
        "dilation": case.dilation,
        "groups": case.groups,
    }
    more_nan = ("output 0",) * (is_not_finite(w) or is_not_finite(x) and is_narrow(case))
    fewer_nan = ("gradient 0",) * is_not_finite(w) + ("gradient 1",) * is_not_finite(x)
    torchs = torchs_of(F.conv_transpose2d, case)
    return Case(
        tnn.conv_transpose2d, torchs, [x, w, bias], options, wgrad_condition(x, 0), more_nan=more_nan, fewer_nan=fewer_nan
    )


def torchs_of(function: Callable[..., Tensor], case: TmaCase) -> Callable[..., Tensor]:
    """torch's convolution. For strided and dilated windows it uses contiguous copies, since channels_last may crash torch."""
    if not any(s > 1 and d > 1 for s, d in zip(case.stride, case.dilation, strict=True)):
        return function

    def of_copies(x: Tensor, w: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        y = function(x.contiguous(), w.contiguous(), bias, **options)
        if y.requires_grad:
            y.register_hook(lambda dy: dy.contiguous())
        images, results = (t if t.dim() == 4 else t.unsqueeze(0) for t in (x, y))
        order = torch.channels_last if is_channels_last(images, w) else torch.contiguous_format
        results = results.contiguous(memory_format=order)
        return results if y.dim() == 4 else results.squeeze(0)

    return of_copies


def is_narrow(case: TmaCase) -> bool:
    """Whether the launcher merges groups, because they have few channels or filters."""
    return case.groups > 1 and min(case.channels, case.filters) < 16


def linear(draw: Drawing) -> Case:
    inputs, outputs = draw.number(0 if draw.seldom() else 1, 40), draw.number(1, 20)
    leading = tuple(draw.number(0 if draw.seldom() else 1, 4) for _ in range(draw.number(0, 3)))
    bias = draw.tensor((outputs,)) if draw.number(0, 1) else None
    x = draw.tensor((*leading, inputs), draw.values_to_sum())
    return Case(tnn.linear, F.linear, [x, draw.tensor((outputs, inputs + draw.seldom())), bias], {})


def relu(draw: Drawing) -> Case:
    shape = tuple(draw.number(0 if draw.seldom() else 1, 6) for _ in range(draw.number(0, 5)))
    ours, torchs = (tnn.relu, F.relu) if draw.number(0, 1) else (in_place(tnn.relu_), in_place(F.relu_))
    return Case(ours, torchs, [draw.tensor(shape, draw.values_to_move())], {}, moves=True)


def in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x * 1)


def max_pool2d(draw: Drawing) -> Case:
    options: dict[str, Any] = {"kernel_size": draw.pair(1, 4), "padding": draw.pair(0, 2), "dilation": draw.pair(1, 3)}
    options |= {"stride": draw.one_of(None, draw.pair(1, 4)), "ceil_mode": draw.one_of(False, True)}
    options["return_indices"] = draw.one_of(False, True)
    x = draw.image(draw.values_to_move())
    # With dilation a window may be outside the image; torch then writes its gradient outside of the tensor.
    assume(not any(misses(n, options, axis) for axis, n in enumerate(x.shape[-2:])))
    return Case(tnn.max_pool2d, F.max_pool2d, [x], options, moves=True)


def misses(size: int, options: dict[str, Any], axis: int) -> bool:
    """Whether some window of a pooling reads no pixel along an axis of that size."""
    stride = options["stride"] if options["stride"] is not None else options["kernel_size"]
    pairs = (options["kernel_size"], stride, options["padding"], options["dilation"])
    taps, step, padding, dilation = (value if isinstance(value, int) else value[axis] for value in pairs)
    starts = range(-padding, size + padding, step)
    return any(all(not 0 <= start + tap * dilation < size for tap in range(taps)) for start in starts)


def avg_pool2d(draw: Drawing) -> Case:
    options: dict[str, Any] = {"kernel_size": draw.pair(1, 4), "padding": draw.pair(0, 2)}
    options |= {"stride": draw.one_of(None, draw.pair(1, 4)), "ceil_mode": draw.one_of(False, True)}
    options |= {"count_include_pad": draw.one_of(False, True), "divisor_override": draw.one_of(None, None, 1, 3, -2, 0)}
    values = draw.values_to_average()
    return Case(tnn.avg_pool2d, F.avg_pool2d, [draw.image(values)], options, subnormal=values == "subnormal")


def output_size(draw: Drawing) -> Any:
    return draw.one_of(draw.number(1, 10), (draw.number(1, 10), draw.number(1, 10)), (None, draw.number(1, 10)), (3, None))


def adaptive_avg_pool2d(draw: Drawing) -> Case:
    values = draw.values_to_average()
    x, options = draw.image(values), {"output_size": output_size(draw)}
    return Case(tnn.adaptive_avg_pool2d, F.adaptive_avg_pool2d, [x], options, subnormal=values == "subnormal")


def adaptive_max_pool2d(draw: Drawing) -> Case:
    options = {"output_size": output_size(draw), "return_indices": draw.one_of(False, True)}
    return Case(tnn.adaptive_max_pool2d, F.adaptive_max_pool2d, [draw.image(draw.values_to_move())], options, moves=True)


def max_unpool2d(draw: Drawing) -> Case:
    """Unpooling of the result of a pooling without overlap."""
    kernel = draw.number(1, 3)
    image = draw.image()
    if min(image.shape[-2:]) < kernel:
        kernel = 1
    y, indices = F.max_pool2d(image.contiguous(), kernel, return_indices=True)
    x = y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 and draw.number(0, 1) else y
    size = draw.one_of(None, tuple(image.shape[-2:]), tuple(n + 2 for n in image.shape[-2:]))
    options = {"kernel_size": kernel, "output_size": size}
    return Case(tnn.max_unpool2d, F.max_unpool2d, [x, indices], options, moves=True)


def batch_norm(draw: Drawing) -> Case:
    images, channels = draw.number(0 if draw.seldom() else 1, 7), draw.number(1, 7)
    shape = images, channels, *(draw.number(0 if draw.seldom() else 1, 7) for _ in range(draw.number(0, 3)))
    x = draw.tensor(shape, draw.one_of("normal", "ties", "zeros", "NaN"))
    if x.dtype.itemsize == 2 and draw.number(0, 1):
        draw.dtype = torch.float32
    vectors: list[Tensor | None] = [draw.tensor(shape[1:2]) if draw.number(0, 3) else None for _ in range(2)]
    if vectors[0] is not None:  # with strided weights torch's gradient of the input is wrong on a CPU
        vectors[0] = vectors[0].contiguous()
    training = draw.one_of(False, True)
    given = not training or draw.number(0, 1)
    mean, var = (draw.tensor(shape[1:2]), draw.tensor(shape[1:2]).abs() + 0.25) if given else (None, None)
    momentum, eps = draw.one_of(0.0, 0.1, 1.0, 0.5), draw.one_of(1e-3, 0.1, 0.5)

    def through(library: Any) -> Callable[..., Any]:
        def function(x: Tensor, w: Tensor | None, b: Tensor | None) -> Any:
            wide = x.dtype if x.dtype.itemsize > 2 else draw.dtype
            moved = [v.to(x.device, wide).clone() if v is not None else None for v in (mean, var)]
            y = library.batch_norm(x, *moved, w, b, training, momentum, eps)
            return (y, *moved) if given else y

        return function

    # Positive and negative addends may cancel in a channel's sums; for a constant upstream gradient the sum is 0.
    return Case(through(tnn), through(F), [x, *vectors], {}, max(1 / eps, x.numel() / channels))


def resized(draw: Drawing) -> dict[str, Any]:
    """Options of a resizing: a size or a factor."""
    if draw.number(0, 1):
        return {"size": draw.one_of(draw.number(1, 12), (draw.number(1, 12), draw.number(1, 12)))}
    factors = st.floats(0.25, 3.5)
    factor = draw.data.draw(factors) if draw.number(0, 1) else (draw.data.draw(factors), draw.data.draw(factors))
    return {"scale_factor": factor, "recompute_scale_factor": draw.one_of(None, False, True)}


def of_four_axes(x: Tensor) -> Tensor:
    """Add an axis to an unbatched image: trinn resizes four axes only (docs/differences.md, interpolate)."""
    return x if x.dim() == 4 else x.unsqueeze(0)


def bilinear(draw: Drawing) -> Case:
    options = resized(draw) | {"mode": "bilinear", "align_corners": draw.one_of(None, False, True)}
    values = draw.values_to_average()
    if values == "infinities":  # 0 * inf is NaN, and the rounding of a coordinate decides if a weight is 0
        values = "NaN"
    x = of_four_axes(draw.image(values))
    return Case(tnn.interpolate, F.interpolate, [x], options, subnormal=values == "subnormal")


def antialias(draw: Drawing) -> Case:
    """Two columns or more, in float32 and float64: torch is wrong for one column, and has other dtypes on GPUs only."""
    draw.dtype = draw.one_of(torch.float32, torch.float64)
    options: dict[str, Any] = {"size": (draw.number(1, 12), draw.number(2, 12)), "mode": "bilinear", "antialias": True}
    options["align_corners"] = draw.one_of(False, True)
    values = draw.one_of("normal", "ties", "zeros", "NaN", "subnormal")
    x = of_four_axes(draw.image(values))
    return Case(tnn.interpolate, F.interpolate, [x], options, subnormal=values == "subnormal")


def nearest(draw: Drawing) -> Case:
    mode = draw.one_of("nearest", "nearest-exact", "area")
    x = of_four_axes(draw.image(draw.values_to_sum() if mode == "area" else draw.values_to_move()))
    options = resized(draw) | {"mode": mode}
    if mode == "area" and "scale_factor" in options:  # docs/differences.md, adaptive_avg_pool2d, "No bins"
        factor = options["scale_factor"]
        assume(
            all(n * f >= 1 for n, f in zip(x.shape[2:], factor if isinstance(factor, tuple) else (factor, factor), strict=True))
        )
    return Case(tnn.interpolate, F.interpolate, [x], options, moves=mode != "area")


OPERATORS: dict[str, Callable[[Drawing], Case]] = {
    function.__name__: function
    for function in (
        conv2d, padded_conv2d, conv_transpose2d, linear, relu, max_pool2d, avg_pool2d, adaptive_avg_pool2d,
        adaptive_max_pool2d, max_unpool2d, batch_norm, bilinear, antialias, nearest,
        conv2d_tma, conv_transpose2d_tma,
    )
}  # fmt: skip


def agrees(name: str, data: st.DataObject) -> None:
    """Draw a case, and assert that trinn has torch's results or exception."""
    draw = Drawing(data)
    case = OPERATORS[name](draw)
    layout = draw.one_of(*draw.layouts)
    given_ = [(tuple(t.shape), t.stride(), t.dtype) if t is not None else None for t in case.tensors]
    note(f"{name}: {given_}, {case.options}, upstream gradient {layout}")
    torchs_exception = exception_of(case.torchs, case.tensors, case.options)
    if torchs_exception is None:
        try:
            return compare(case, layout)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            exact_exception = exception_of(case.torchs, in_float64(case), case.options)
            if type(exact_exception) is not type(error):
                raise
            return None  # torch raises in float64, so an exception is right
    try:
        case.ours(*case.tensors, **case.options)
    except type(torchs_exception):
        return
    except Exception as error:
        raise AssertionError(f"{name} raises {error!r}, torch {torchs_exception!r}") from error
    raise AssertionError(f"{name} accepts a call for which torch raises {torchs_exception!r}")


def exception_of(function: Callable[..., Any], tensors: Sequence[Tensor | None], options: dict[str, Any]) -> Exception | None:
    try:
        function(*tensors, **options)
    except Exception as error:
        return error
    return None


def in_float64(case: Case) -> tuple[Tensor | None, ...]:
    """The tensors in float64, for the reference."""
    return tuple(t.cpu().double() if t is not None and t.is_floating_point() else t for t in case.tensors)


def compare(case: Case, layout: str) -> None:
    """Compare outputs, strides and gradients with torch's in the same dtype and in float64."""
    dtype = next(t.dtype for t in case.tensors if t is not None)
    ours, torchs = (
        run(with_upstream_layout(f, layout), tuple(case.tensors), case.options, dtype) for f in (case.ours, case.torchs)
    )
    oracle = run(with_upstream_layout(case.torchs, layout), in_float64(case), case.options, dtype)
    assert ours.keys() == torchs.keys()
    for name, result in ours.items():
        if name.startswith("output") and result.numel() > 1:
            strides = [[s for s, n in zip(r[name].stride(), result.shape, strict=True) if n > 1] for r in (ours, torchs)]
            assert strides[0] == strides[1], f"{name}: strides {strides[0]}, torch has {strides[1]}"
        finite = oracle[name].isfinite() if result.is_floating_point() else None
        largest = float(oracle[name][finite].abs().max()) if finite is not None and finite.any() else 0.0
        units = 2 if dtype.itemsize == 2 else 16
        least = torch.finfo(dtype).tiny if case.subnormal and name.startswith("output") else 1.0
        slack = units * case.condition * max(largest, least) * torch.finfo(dtype).eps
        if case.moves and name.startswith("output"):
            slack = 0.0
        expected = torchs[name]
        if finite is not None and not (
            result.isfinite().equal(expected.isfinite()) and result.isnan().equal(expected.isnan())
        ):  # then torch's float64 is right
            expected = oracle[name].to(expected.device, expected.dtype)
        if name in case.more_nan:
            result = torch.where(result.isfinite(), result, expected)
        if name in case.fewer_nan:
            result = torch.where(expected.isnan(), expected, result)
        close(result, expected, oracle[name], max(error(torchs[name], oracle[name]), slack / 2), name)


def fuzz(
    name: str, cases: int, start: int, on_case: Callable[[], None] = lambda: None, phases: tuple[Phase, ...] = tuple(Phase)
) -> None:
    """Check `cases` drawn cases of an operator; `start` is the seed."""

    @seed(start)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=phases)
    @given(st.data())
    def test(data: st.DataObject) -> None:
        with tma_everywhere() if "tma" in name else contextlib.nullcontext() as started:
            agrees(name, data)
        taken.append(bool(started))
        on_case()

    taken: list[bool] = []
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        test()
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert "tma" not in name or not INTERPRETED or sum(taken) > 0.5 * len(taken), "too few cases used TMA"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", default=",".join(OPERATORS), help="operators, separated by commas")
    parser.add_argument("--minutes", type=float, default=10, help="total time")
    parser.add_argument("--cases", type=int, default=10**9, help="limit of cases for each operator")
    parser.add_argument("--seed", type=int, default=0, help="first seed; default: %(default)s")
    parser.add_argument("--shrink", action="store_true", help="minimise a failing case")
    parser.add_argument("--record", action="store_true", help="record the result for docs/evidence.md")
    options = parser.parse_args()
    names = options.ops.split(",")
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        results[name] = {"cases": 0, "seed": options.seed, "failures": 0, "seconds": 0.0}
        started, at = time.monotonic(), options.seed

        def on_case(found: dict[str, Any] = results[name]) -> None:
            found["cases"] += 1

        while time.monotonic() - started < 60 * options.minutes / len(names) and results[name]["cases"] < options.cases:
            if INTERPRETED:  # small tiles have more edges; every fourth run uses the default tiles
                runtime.settings.interpreted_block, runtime.settings.wanted_programs = (16384, 1) if at % 4 == 3 else (16, 8)
            try:
                fuzz(name, 50, at, on_case, tuple(Phase) if options.shrink else (Phase.generate,))
            except Exception:
                results[name]["failures"] += 1
                traceback.print_exc()
                print(f"\nto repeat: python -m tests.fuzz --ops {name} --seed {at} --cases 50 --shrink\n", flush=True)
                break
            at += 1
        results[name]["seconds"] = round(time.monotonic() - started, 1)
        print(f"{name:27}" + "  ".join(f"{value} {key}" for key, value in results[name].items()), flush=True)
    if options.record:
        path = evidence.DOCS / "evidence" / "fuzz.json"
        kept = json.loads(path.read_text())["operators"] if path.exists() else {}
        kept |= results
        evidence.record("fuzz", {"operators": {name: kept[name] for name in OPERATORS if name in kept}})
    return 1 if any(found["failures"] for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
