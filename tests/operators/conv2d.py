"""The record of layers/conv2d.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from bench import shapes
from tests.support.check import randn
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, MEDIUM, TAP_NUMBER, Arguments, ManyElements, Mutant, Operator, Samples, case
from tests.support.tma import tma_everywhere
from trinn.kernels import ops
from trinn.kernels.runtime.layout import is_channels_last


def conv2d(draw: Drawing) -> DrawnCase:
    groups = draw.number(1, 3)
    channels, filters = draw.number(1, 3), draw.number(1, 3)
    if draw.seldom():
        channels = 1
    x = draw.image(draw.values_to_sum(), groups * channels)
    w = draw.tensor((groups * filters, channels, draw.number(1, 4), draw.number(1, 4)), draw.values_to_sum())
    options: dict[str, Any] = {"stride": draw.pair(1, 4), "dilation": draw.pair(1, 4), "groups": groups}
    options["padding"] = draw.one_of("same", "valid") if draw.seldom() else draw.pair(-1 if draw.seldom() else 0, 4)
    bias = draw.tensor((groups * filters + draw.seldom(),)) if draw.number(0, 1) else None
    return DrawnCase(tnn.conv2d, F.conv2d, [x, w, bias], options, more_nan=("gradient 0",) * is_not_finite(w))


def is_not_finite(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())


def padded_conv2d(draw: Drawing) -> DrawnCase:
    """The convolution of a module with a padding mode."""
    mode, padding = draw.one_of("reflect", "replicate", "circular"), draw.pair(0, 5)
    channels, taps = draw.number(1, 3), draw.number(1, 3)
    x, w = draw.image(channels=channels), draw.tensor((2, channels, taps, taps))

    def through(library: Any) -> Callable[..., Any]:
        module = library.Conv2d(channels, 2, taps, padding=padding, padding_mode=mode, bias=False)
        return lambda x, w: module._conv_forward(x, w, None)

    return DrawnCase(through(tnn), through(torch.nn), [x, w], {}, wgrad_condition(x, 10))


def wgrad_condition(x: Tensor, padding: int) -> float:
    """The condition of a filter's gradient, a sum over all pixels. If all pixels are equal, rounding errors add up."""
    images = x.shape[0] if x.dim() == 4 else 1
    return max(1.0, images * (x.shape[-2] + padding) * (x.shape[-1] + padding) / 64)


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


def conv2d_tma(draw: Drawing) -> DrawnCase:
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
    return DrawnCase(tnn.conv2d, torchs, [x, w, bias], options, wgrad_condition(x, 0), more_nan=more_nan, fewer_nan=fewer_nan)


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


PASSES: dict[str, shapes.Passes] = {
    "conv2d": shapes.conv((2, 6, 7, 8), (4, 6, 3, 3), stride=2, padding=1),
    "conv2d, groups": shapes.conv((2, 6, 7, 8), (4, 3, 3, 2), groups=2),
    "conv2d, depthwise": shapes.conv((2, 6, 7, 8), (6, 1, 3, 3), padding=1, groups=6),
    "conv2d, depthwise, two filters": shapes.conv((2, 6, 7, 8), (12, 1, 3, 3), padding=1, groups=6),
    "conv2d, fused": shapes.conv_fused((2, 6, 7, 8), (4, 6, 3, 3), padding=1),
    "conv2d, fused, depthwise": shapes.conv_fused((2, 6, 7, 8), (6, 1, 3, 3), padding=1, groups=6),
    "conv2d, TMA": shapes.conv((32, 64, 5, 8), (64, 64, 3, 3), stride=2, padding=1),
    "conv2d, TMA, 1x1": shapes.conv((32, 64, 4, 8), (64, 64, 1, 1)),
    "conv2d, TMA, narrow groups": shapes.conv((32, 64, 5, 6), (64, 16, 3, 3), padding=1, groups=4),
    "conv2d, TMA, few channels": shapes.conv((64, 3, 64, 64), (64, 3, 7, 7), stride=2, padding=3),
    "conv2d, TMA, fused": shapes.conv_fused((2, 64, 7, 8), (64, 64, 3, 3), padding=1),
}
MANY_PASSES: dict[str, shapes.Passes] = {
    "conv2d": shapes.conv((2**17, 16, 64, 64), (16, 16, 3, 3), stride=2, padding=1),
    "conv2d, 1 channel": shapes.conv((2**25, 1, 8, 8), (1, 1, 3, 3), padding=1),
    "conv2d, few images": shapes.conv((3, 3, 2**15, 2**15), (8, 3, 3, 3), padding=1),
    "conv2d, depthwise": shapes.conv((2**20, 8, 32, 32), (8, 1, 3, 3), padding=1, groups=8),
    "conv2d, depthwise, two filters": shapes.conv((2**19, 8, 32, 32), (16, 1, 3, 3), padding=1, groups=8),
    "conv2d, many groups": shapes.conv((1, 2**21, 32, 32), (2**22, 2, 3, 3), padding=1, groups=2**20),
    "conv2d, fused": shapes.conv_fused((2**17, 16, 64, 64), (16, 16, 3, 3), padding=1),
    "conv2d, fused, depthwise": shapes.conv_fused((2**20, 8, 32, 32), (8, 1, 3, 3), padding=1, groups=8),
    "conv2d, TMA": shapes.conv((2**17, 64, 64, 64), (64, 64, 3, 3), stride=2, padding=1),
    "conv2d, TMA, 1x1": shapes.conv((2**17, 64, 64, 64), (64, 64, 1, 1)),
    "conv2d, TMA, 1x1 with more pixels than int32 counts": shapes.conv((2**19, 64, 64, 64), (64, 64, 1, 1)),
    "conv2d, TMA, few images": shapes.conv((3, 64, 2**14, 2**14), (64, 64, 3, 3), padding=1),
    "conv2d, TMA, narrow groups": shapes.conv((2**17, 64, 64, 64), (64, 16, 3, 3), padding=1, groups=4),
    "conv2d, TMA, few channels": shapes.conv((2**17, 3, 128, 128), (64, 3, 7, 7), stride=2, padding=3),
    "conv2d, TMA, fused": shapes.conv_fused((2**17, 64, 64, 64), (64, 64, 3, 3), padding=1),
}


def _conv(op: Callable[..., Tensor], w: tuple[int, ...], size: int, groups: int = 1) -> ManyElements:
    return ManyElements(lambda x: op(x, _filters(x, w), None, (size, size), (2, 2), (1, 1), (1, 1), groups), (2, 8, 8))


def _conv_by_tma(
    op: Callable[..., Tensor], w: tuple[int, ...], padding: int, stride: int = 1, size: tuple[int, int] = (4, 4)
) -> ManyElements:
    geometry = (stride, stride), (padding, padding), (1, 1), 1
    return ManyElements(lambda x: _by_tma(op, _last(x), _filters(x, w), None, size, *geometry), (16, 8, 8))


def _filters(x: Tensor, w: tuple[int, ...]) -> Tensor:
    return (torch.arange(torch.Size(w).numel()) % 5 - 2).reshape(w).to(x.dtype)


def _last(x: Tensor) -> Tensor:
    """View contiguous memory as images of the same shape with channels innermost. The order of the values changes."""
    return x.view(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


def _by_tma(op: Callable[..., Tensor], *args: object) -> Tensor:
    with tma_everywhere() as started:
        result = op(*args)
    assert started, "the TMA kernels did not run"
    return result


def _wgrad(groups: int) -> ManyElements:
    """A sum over all images."""
    return ManyElements(lambda x: ops.conv2d_wgrad(x, x, (3, 3), (1, 1), (1, 1), (1, 1), groups)[None], (2, 8, 8))


MANY_ELEMENTS = {
    "conv2d": _conv(ops.conv2d_fprop, (3, 2, 3, 3), 4),
    "conv2d backward": _conv(ops.conv2d_dgrad, (2, 3, 3, 3), 16),
    "conv2d, depthwise": _conv(ops.conv2d_fprop, (2, 1, 3, 3), 4, 2),
    "conv2d, depthwise backward": _conv(ops.conv2d_dgrad, (2, 1, 3, 3), 15, 2),
    # A TMA box (the block of a tensor moved by one TMA copy) is 4 x 4 pixels of four images or, with a stride, a row of 4
    # pixels of 16 images. Channels are innermost.
    "conv2d, TMA": _conv_by_tma(ops.conv2d_fprop, (64, 16, 3, 3), 0),
    "conv2d, TMA, stride": _conv_by_tma(ops.conv2d_fprop, (64, 16, 2, 2), 0, 2, (2, 4)),
    "conv2d, TMA, backward": _conv_by_tma(ops.conv2d_dgrad, (16, 64, 3, 3), 2),
    "conv2d, TMA, 1x1": _conv_by_tma(ops.conv2d_fprop, (64, 16, 1, 1), 0, size=(8, 8)),
    "conv2d, TMA, weights": ManyElements(
        lambda x: _by_tma(ops.conv2d_wgrad, _last(x), _last(x), (1, 1), (1, 1), (0, 0), (1, 1), 1)[None], (16, 8, 8)
    ),
    "channel_sum": ManyElements(lambda x: ops.channel_sum(x)[None], (2, 8, 8)),
    "conv2d weights": _wgrad(groups=1),
    "conv2d, depthwise weights": _wgrad(groups=2),
}
MUTANTS = (
    Mutant("filters are transposed", "kernels/conv2d/pointer.py", "r, s = i, j\n", "r, s = j, i\n", "conv2d"),
    Mutant("every phase of a gradient begins with the first tap", "kernels/conv2d/pointer.py", "r, s = first_r + i * H.tap_step, first_s + j * W.tap_step", "r, s = i * H.tap_step, j * W.tap_step", "conv2d"),
    Mutant("the last block of channels and taps is missing", "kernels/conv2d/pointer.py", "for start in range(0, depth, BLOCK_K):", "for start in range(0, depth - BLOCK_K + 1, BLOCK_K):", "conv2d"),
    Mutant("groups read channels from the first channel on", "kernels/conv2d/pointer.py", "source += group * channels_in * x_c", "source += group * x_c", "conv2d"),
    Mutant("every group uses the first group's filters", "kernels/conv2d/pointer.py", "weight += group * weight_group", "weight += group * 0", "conv2d"),
    Mutant("the bias is from the wrong group", "kernels/conv2d/pointer.py", "scale_and_shift(acc, scale, bias, channel_of_all[None, :],", "scale_and_shift(acc, scale, bias, channel[None, :],", "conv2d"),
    Mutant("every phase of a gradient begins with the first pixel", "kernels/conv2d/pointer.py", "row, col = first_row + row * H.stride, first_col + col * W.stride", "row, col = row * H.stride, col * W.stride", "conv2d"),
    Mutant("wgrad: the last pixel of each split is missing", "kernels/conv2d/pointer.py", "last = tl.minimum(first + pixels_per_split, pixels)", "last = tl.minimum(first + pixels_per_split - 1, pixels)", "conv2d"),
    Mutant("wgrad: dilation is ignored", "kernels/conv2d/pointer.py", "down, right = r * H.dilation, s * W.dilation", "down, right = r, s", "conv2d"),
    Mutant("a phase without taps divides by zero", "kernels/conv2d/pointer.py", "across = tl.maximum(taps_w, 1)", "across = taps_w", "compiled"),
    Mutant("depthwise: all channels use one filter", "kernels/conv2d/depthwise.py", "at = channel * w_k +", "at = channel * 0 +", "conv2d"),
    Mutant("depthwise: the second filter reads the next channel", "kernels/conv2d/depthwise.py", "(channel // FILTERS) * x_c", "(channel % channels) * x_c", "conv2d"),
    Mutant("depthwise: dgrad uses the first filter only", "kernels/conv2d/depthwise.py", "for f in range(FILTERS):", "for f in range(1):", "conv2d"),
    Mutant("depthwise: wgrad of the second filter reads the next channel", "kernels/conv2d/depthwise.py", "((k // FILTERS) * x_c)", "((k % (filters // FILTERS)) * x_c)", "conv2d"),
    Mutant("transposed convolution: the bias has no gradient", "layers/conv2d.py", "return ddy, dw, ChannelSum.call(ddx) if need_b else None", "return ddy, dw", "conv_transpose2d"),
    Mutant("wgrad: a second derivative is missing", "layers/conv2d.py", "ddy = Conv2dFprop.call(x, ddw, None, dy.shape[2:], *geometry) if need_dy else None", "ddy = None", "conv2d"),
    Mutant("unneeded gradients are computed", "layers/conv2d.py", "if need_w else None\n    return dx, dw, ChannelSum.call(dy)", "\n    return dx, dw, ChannelSum.call(dy)", "launch"),
    Mutant("sliding depthwise: incomplete rows are stored", "kernels/conv2d/depthwise_sliding.py", "mask = has_pixel & has_channel & (complete >= first)", "mask = has_pixel & has_channel & (row >= first)", "conv2d"),
    Mutant("sliding depthwise: dgrad does not flip the filters", "kernels/conv2d/depthwise_sliding.py", "flipped = ALL_TAPS - 1 - tap if ADJOINT else tap", "flipped = tap", "conv2d"),
    Mutant("sliding depthwise: the last row is missing", "kernels/conv2d/depthwise_sliding.py", "for row in range(first, last + PENDING):\n        rows = _converted(next_rows", "for row in range(first, last + PENDING - 1):\n        rows = _converted(next_rows", "conv2d"),
    Mutant("sliding depthwise: the same row is loaded again", "kernels/conv2d/depthwise_sliding.py", "next_rows = _load_rows(big_from_small(row + 1, 0, H), source", "next_rows = _load_rows(big_from_small(row, 0, H), source", "conv2d"),
    Mutant("sliding depthwise: columns past the edge are read", "kernels/conv2d/depthwise_sliding.py", "tap_exists += (has_pixel & has_channel & inside(left + s * W.dilation, source_width),)", "tap_exists += (has_pixel & has_channel,)", "conv2d"),
    Mutant("TMA wgrad: every split begins with the first column", "kernels/conv2d/tma_wgrad.py", "q = first_q + first % count_q * (1 if ALONG_IMAGES else BLOCK_K)", "q = first_q", "conv2d_tma"),
    Mutant("TMA wgrad: every split begins with the first row", "kernels/conv2d/tma_wgrad.py", "first_p + first // count_q % count_p", "first_p", "conv2d_tma"),
    Mutant("TMA wgrad: every split begins with the first image", "kernels/conv2d/tma_wgrad.py", "n, p = first // (count_q * count_p) * (BLOCK_K if ALONG_IMAGES else 1),", "n, p = first * 0,", "conv2d_tma"),
    Mutant("bf16 terms: NaN of the small products is kept", "kernels/conv2d/tma.py", 'acc = tl.where(tl.abs(acc) < float("inf"), acc, 0.0)', "acc = acc + 0.0", "conv2d_tma"),
    Mutant("bf16 terms: the third term ignores the second", "kernels/conv2d/relayout.py", "return first, second, _bfloat16(rest - widen(second))", "return first, second, _bfloat16(rest)", "relayout"),
    Mutant("bf16 terms: the largest number becomes infinite", "kernels/conv2d/relayout.py", 'first = _bfloat16(tl.where(tl.abs(value) < float("inf"), within, value))', "first = _bfloat16(value)", "relayout"),
    Mutant("bf16 terms: ties are rounded up", "kernels/conv2d/relayout.py", "0x7FFF + ((bits >> 16) & 1)", "0x8000", "relayout"),
    Mutant("relayout: missing channels are read", "kernels/conv2d/relayout.py", "exists = tl.max_constancy((lane < filled) & (row < rows), [X_LANES, X_ROWS])", "exists = tl.max_constancy((lane < lanes) & (row < rows), [X_LANES, X_ROWS])", "relayout"),
    Mutant("relayout: rows of images are misaligned", "kernels/conv2d/relayout.py", "out = empty(x, (height, width, c, triton.cdiv(n, least) * least)).permute(3, 2, 0, 1)[:n]", "out = empty(x, (height, width, c, n)).permute(3, 2, 0, 1)[:n]", "relayout"),
    Mutant("merged groups: filters are repeated for all channels", "kernels/conv2d/relayout.py", "c = wide - k // filters % at_once * channels", "c = wide % channels", "conv2d_tma"),
    Mutant("TMA: misaligned strides are accepted", "kernels/conv2d/tma_box.py", "others = [s * image.dtype.itemsize for axis, s in enumerate(strides) if axis != innermost]", "others = [16]", "tma_box"),
    Mutant("TMA: misaligned addresses are accepted", "kernels/conv2d/tma_box.py", "begins = image.data_ptr() % 16 == 0 and all(", "begins = all(", "tma_box"),
    Mutant("TMA: rows with gaps are merged", "kernels/conv2d/tma_box.py", "(h == 1 or s_h == w * s_w) and (n == 1", "(n == 1", "conv2d_tma tma_box"),
    Mutant("TMA: planes of rows with gaps are merged", "kernels/conv2d/tma_box.py", "rows = (w == 1 or s_w == 1) and (h == 1 or s_h == w)", "rows = w == 1 or s_w == 1", "conv2d_tma tma_box"),
    Mutant("TMA: a column's remainder by the stride is ignored", "kernels/conv2d/tma.py", "(col - at * SPAN) * source_pitch + channel", "channel", "conv2d_tma"),
    Mutant("TMA: an odd row is viewed as pairs of columns", "kernels/conv2d/tma.py", "strided[1] and source.shape[3] % stride[1] != 0)", "False)", "conv2d_tma"),
    Mutant("TMA: every phase of dgrad begins with the first column of taps", "kernels/conv2d/tma.py", "* W.taps + first_s + j * W.tap_step", "* W.taps + j * W.tap_step", "conv2d_tma"),
    Mutant("TMA: dgrad uses the first group's filters", "kernels/conv2d/tma.py", "weight_row = source_channel if TRANSPOSED else", "weight_row = 0 if TRANSPOSED else", "conv2d_tma"),
    Mutant("TMA: a tile without taps is not multiplied by zeros", "kernels/conv2d/tma.py", "source_channel, weight_row = OUTSIDE, OUTSIDE", "pass", "conv2d_tma"),
    Mutant("TMA: only the images of the first tile are computed", "kernels/conv2d/tma.py", "n0 = pixel_tile // (column_tiles * row_tiles) * BOX.images", "n0 = pixel_tile // (column_tiles * row_tiles * image_tiles) * BOX.images", "conv2d_tma"),
    Mutant("TMA: a block of channels reaches into the next group", "kernels/conv2d/tma.py", "if groups > 1 or in_terms or (stride[1] > 1 and not adjoint):", "if in_terms or (stride[1] > 1 and not adjoint):", "conv2d_tma"),
    Mutant("TMA: narrow groups use a window copy", "kernels/conv2d/tma.py", "stride, padding, dilation, merged * groups)\n", "stride, padding, dilation, groups)\n", "conv2d_tma"),
    Mutant("TMA: the second part of a tile is stored over the first", "kernels/conv2d/tma.py", "at = part * (BOX.pixels // PARTS) + tl.arange", "at = tl.arange", "conv2d_tma"),
    Mutant("TMA: both parts of a tile store statistics to the same position", "kernels/conv2d/tma.py", "partial = pixel_tile * PARTS + i", "partial = pixel_tile * PARTS", "conv2d_tma"),
    Mutant("TMA: statistics include missing pixels", "kernels/conv2d/tma.py", "store_statistics(value, in_result, exists", "store_statistics(value, n >= 0, exists", "conv2d_tma"),
    Mutant("TMA wgrad: products with other groups' channels are stored", "kernels/conv2d/tma_wgrad.py", "owned &= (k // narrow_filters)[:, None] == (c // narrow_channels)[None, :]", "pass", "conv2d_tma"),
    Mutant("TMA wgrad: every program has the first taps of a row", "kernels/conv2d/tma_wgrad.py", "s, program = program % (W.taps // TAPS_W) * TAPS_W,", "s, program = program % (W.taps // TAPS_W) * 0,", "conv2d_tma"),
    Mutant("TMA wgrad: a split without runs is not multiplied by zeros", "kernels/conv2d/tma_wgrad.py", "x_channel, dy_channel = OUTSIDE, OUTSIDE", "pass", "conv2d_tma"),
    Mutant("TMA wgrad: every split but the last lacks its last run", "kernels/conv2d/tma_wgrad.py", "((split + 1) * runs // splits).to(tl.int32)", "((split + 1) * runs // splits - (split + 1 < splits)).to(tl.int32)", "conv2d_tma"),
    Mutant("TMA wgrad: pixels of images with different sizes form one row", "kernels/conv2d/tma_wgrad.py", "for view in (flat_view, planar_view) if x.shape[2:] == dy.shape[2:] else ():", "for view in (flat_view, planar_view):", "conv2d_tma"),
    Mutant("TMA wgrad: an odd row is viewed as pairs of columns", "kernels/conv2d/tma_wgrad.py", " and (window_copy is not None or x.shape[3] % stride[1] == 0)", "", "tma_box"),
    Mutant("TMA wgrad: the partial last run is missing", "kernels/conv2d/tma_wgrad.py", "triton.cdiv(images, plan.run) if plan.along_images", "images // plan.run if plan.along_images", "conv2d_tma"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "conv2d": case(nn.conv2d, IMAGE, (3, 5, 3, 3), (3,), stride=2, padding=1, saved=(0, 1)),
        "conv2d, groups": case(nn.conv2d, (2, 6, 7, 6), (4, 3, 3, 2), (4,), padding=2, dilation=2, groups=2),
        "conv2d, depthwise": case(
            nn.conv2d, IMAGE, (10, 1, 3, 3), (10,), stride=2, padding=1, groups=5, saved=(0, 1), float64_strides=False
        ),
    },
    tma=lambda nn: {
        "conv2d": case(nn.conv2d, (17, 16, 2, 3), (16, 16, 2, 3), (16,), padding=1),
        "conv2d, stride 2": case(nn.conv2d, (1, 16, 3, 18), (16, 16, 2, 3), (16,), stride=2, padding=1),
        "conv2d, 1x1": case(nn.conv2d, (3, 16, 4, 8), (24, 16, 1, 1), (24,)),
        "conv2d, narrow groups": case(nn.conv2d, (2, 16, 2, 5), (32, 4, 2, 3), (32,), padding=1, groups=4),
        "conv2d, few channels": case(nn.conv2d, (2, 3, 5, 12), (16, 3, 7, 7), (16,), stride=2, padding=3),
    },
    precision=lambda nn: {
        "conv2d 3x3": case(nn.conv2d, (4, 64, 9, 8), (48, 64, 3, 3), (48,), padding=1),
        "conv2d 7x7, stride 2": case(nn.conv2d, (2, 3, 25, 24), (16, 3, 7, 7), (16,), stride=2, padding=3),
        "conv2d, depthwise": case(nn.conv2d, (4, 64, 9, 8), (64, 1, 3, 3), (64,), groups=64),
    },
    programs=lambda nn: {
        "conv2d": case(nn.conv2d, (4, 3, 64, 64), (32, 3, 3, 3), (32,), padding=1, programs=4),
        "conv2d, stride 2": case(nn.conv2d, MEDIUM, (32, 16, 3, 3), (32,), stride=2, padding=1, programs=10),
        "conv2d, groups": case(nn.conv2d, MEDIUM, (32, 4, 3, 3), (32,), padding=1, groups=4, programs=16),
        "conv2d, depthwise": case(nn.conv2d, MEDIUM, (16, 1, 3, 3), (16,), padding=1, groups=16, programs=17),
    },
    draws=(conv2d, padded_conv2d, conv2d_tma),
    functions={"conv2d": Arguments(tensors={"weight": lambda: randn(3, 2, 2, 2), "bias": lambda: randn(3)})},
    modules={
        "Conv2d": Arguments({"in_channels": 2, "out_channels": 3, "kernel_size": 2}),
        "LazyConv2d": Arguments({"out_channels": 3, "kernel_size": 2}),
    },
    samples={"conv2d": Samples(shards=2)},
    patched={
        "F.conv2d": lambda x: F.conv2d(x, x[:2, :, :3, :3], padding="same"),
        "torch.conv2d": lambda x: torch.conv2d(x, weight=x[:2, :2, :3, :3], groups=2),
        "nn.Conv2d": lambda x: torch.nn.Conv2d(4, 3, 3).to(x.device, x.dtype)(x).shape and F.relu(x),
    },
    passes=PASSES,
    many_passes=MANY_PASSES,
    last_image={
        "conv2d": lambda x: tnn.conv2d(x, x.new_ones(2, 2, 3, 3), stride=2, padding=1),
        "conv2d, depthwise": lambda x: tnn.conv2d(x, x.new_ones(2, 1, 3, 3), stride=2, padding=1, groups=2),
    },
    many_elements=MANY_ELEMENTS,
    small_multiplications={
        "_conv2d_gather_kernel": "taps of a pixel: rows times columns",
        "_conv2d_gather_tma_kernel": "coordinates for descriptors, and the number of taps",
        "_conv2d_wgrad_tma_kernel": "coordinates for descriptors, and positions within a filter",
        "_few_channels_copy_kernel": "columns, and the elements of a row",
        "_depthwise2d_gather_kernel": TAP_NUMBER,
    },
    mutants=MUTANTS,
)
