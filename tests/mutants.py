"""Kernels broken on purpose, one place at a time, that `make test` must notice: `make mutants`.

Each mutant is a line of the sources replaced in a scratch copy. The tests of its operator run there first; only if they pass
does the rest of the suite. A mutant is caught when a test fails that passes in an untouched copy, or hangs, or ends its process.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests import evidence

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 1200  # seconds
HANGS, CRASHES = "a test hangs", "a test crashes"


class Mutant(NamedTuple):
    """`old`, which stands once in the file, becomes `new`; `tests` are the names of those expected to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # the arithmetic of windows
    Mutant("tap off by one", "kernels/device/indexing.py", "- AXIS.padding + tap * AXIS.dilation", "- AXIS.padding + (tap + 1) * AXIS.dilation", "conv2d"),
    Mutant("dilation ignored", "kernels/device/indexing.py", "- AXIS.padding + tap * AXIS.dilation", "- AXIS.padding + tap", "pool2d"),
    Mutant("padding added, not taken away", "kernels/device/indexing.py", "small * AXIS.stride - AXIS.padding +", "small * AXIS.stride + AXIS.padding +", "conv2d"),
    Mutant("the pixel after the last is inside", "kernels/device/indexing.py", "(position < size)", "(position <= size)", "conv2d"),
    Mutant("wrong phase of a strided gradient", "kernels/device/indexing.py", "shifted % AXIS.stride) // AXIS.gcd * AXIS.inverse", "shifted % AXIS.stride) // AXIS.gcd", "conv2d"),
    Mutant("a tap too few hits", "kernels/device/indexing.py", "hits = cdiv(AXIS.taps - tap, AXIS.tap_step)", "hits = (AXIS.taps - tap) // AXIS.tap_step", "conv2d"),
    Mutant("pixels between the phases are hit", "kernels/device/indexing.py", "tl.where(shifted % AXIS.gcd == 0, hits, 0)", "hits", "conv2d pool2d"),
    Mutant("rows and columns swapped", "kernels/device/indexing.py", "return row // height, row % height, pixel % width", "return row // height, pixel % width, row % height", "conv2d"),
    # convolution
    Mutant("filters turned over", "kernels/conv2d/pointer.py", "r, s = i, j\n", "r, s = j, i\n", "conv2d"),
    Mutant("every phase of a gradient begins at the first tap", "kernels/conv2d/pointer.py", "r, s = first_r + i * H.tap_step, first_s + j * W.tap_step", "r, s = i * H.tap_step, j * W.tap_step", "conv2d"),
    Mutant("the most hits rounded down", "kernels/device/indexing.py", "return -(-self.taps // self.tap_step)", "return self.taps // self.tap_step", "pool2d"),
    Mutant("the last block of channels and taps forgotten", "kernels/conv2d/pointer.py", "for start in range(0, depth, BLOCK_K):", "for start in range(0, depth - BLOCK_K + 1, BLOCK_K):", "conv2d"),
    Mutant("groups read from the first", "kernels/conv2d/pointer.py", "source += group * channels_in * x_c", "source += group * x_c", "conv2d"),
    Mutant("filters of a group from the first", "kernels/conv2d/pointer.py", "weight += group * weight_group", "weight += group * 0", "conv2d"),
    Mutant("bias of the wrong group", "kernels/conv2d/pointer.py", "apply_epilogue(acc, scale, bias, channel_of_all,", "apply_epilogue(acc, scale, bias, channel,", "conv2d"),
    Mutant("bias added twice", "kernels/device/epilogue.py", "acc += tl.load(bias + channel", "acc += 2 * tl.load(bias + channel", "conv2d"),
    Mutant("a gradient's phases all start at the first", "kernels/conv2d/pointer.py", "row, col = first_row + row * H.stride, first_col + col * W.stride", "row, col = row * H.stride, col * W.stride", "conv2d"),
    Mutant("the last part of a filter's gradient is lost", "kernels/conv2d/pointer.py", "last = tl.minimum(first + pixels_per_split, pixels)", "last = tl.minimum(first + pixels_per_split - 1, pixels)", "conv2d"),
    Mutant("a filter's gradient ignores dilation", "kernels/conv2d/pointer.py", "down, right = r * H.dilation, s * W.dilation", "down, right = r, s", "conv2d"),
    Mutant("partial sums: all but the first", "kernels/reduce.py", "for start in range(0, splits, SPLITS):", "for start in range(SPLITS, splits, SPLITS):", "conv2d linear"),
    Mutant("partial sums of 16 bits", "kernels/reduce.py", "    dtype = torch.float64 if total.dtype == torch.float64 else torch.float32\n", "    dtype = total.dtype\n", "conv2d linear"),
    Mutant("a bias's gradient without its last block", "kernels/reduce.py", "acc += widen(values[i]).to(ACCUMULATOR)", "acc += tl.where(row + TILE.rows * TILE.ahead < last, widen(values[i]).to(ACCUMULATOR), 0.0)", "conv2d linear"),
    Mutant("depthwise: one filter for all channels", "kernels/conv2d/depthwise.py", "at = channel * w_k +", "at = channel * 0 +", "conv2d"),
    Mutant("depthwise: the second filter reads the next channel", "kernels/conv2d/depthwise.py", "(channel // FILTERS) * x_c", "(channel % channels) * x_c", "conv2d"),
    Mutant("depthwise: a gradient of the first filter alone", "kernels/conv2d/depthwise.py", "for f in range(FILTERS):", "for f in range(1):", "conv2d"),
    Mutant("depthwise: the second filter's gradient from the next channel", "kernels/conv2d/depthwise.py", "((k // FILTERS) * x_c)", "((k % (filters // FILTERS)) * x_c)", "conv2d"),
    Mutant("sums rounded to the input's dtype", "kernels/device/precision.py", "return acc + product if APART else product", "return (acc + product if APART else product).to(tl.float16).to(acc.dtype)", "conv2d linear"),
    Mutant("output_padding ignored", "layers/window.py", "- 2 * p + extra for", "- 2 * p for", "conv_transpose2d"),
    Mutant("same: the odd pixel at the near edge", "layers/window.py", "return (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)", "return (total[0] - total[0] // 2, total[1] - total[1] // 2), (total[0] // 2, total[1] // 2)", "conv2d"),
    Mutant("transposed: gradient of the bias missing", "layers/conv2d.py", "return ddy, dw, ChannelSum.call(ddx) if need_b else None", "return ddy, dw", "conv_transpose2d"),
    Mutant("second derivative of a filter's gradient missing", "layers/conv2d.py", "ddy = Conv2dFprop.call(x, ddw, None, dy.shape[2:], *geometry) if need_dy else None", "ddy = None", "conv2d"),
    Mutant("autocast takes float64 too", "layers/function.py", "t.is_floating_point() and t.dtype != torch.float64 else t", "t.is_floating_point() else t", "autocast"),
    Mutant("function transforms see the eager form", "layers/function.py", "if _is_transformed():", "if False:", "function"),
    Mutant("TF32 where it was forbidden", "kernels/device/precision.py", 'return "tf32" if allowed == "tf32" else "tf32x3"', 'return "tf32"', "precision"),
    Mutant("gradients computed that nobody wants", "layers/conv2d.py", "if need_w else None\n    return dx, dw, ChannelSum.call(dy)", "\n    return dx, dw, ChannelSum.call(dy)", "launch"),
    Mutant("alignment left out of the key", "kernels/runtime/launch_cache.py", "arg.stride(), arg.data_ptr() % 16, arg", "arg.stride(), arg", "launch_cache"),
    Mutant("strides left out of the key", "kernels/runtime/launch_cache.py", "arg.shape, arg.stride(), ", "arg.shape, ", "launch_cache"),
    Mutant("precision left out of the key", "kernels/runtime/launch_cache.py", "float32 = float32 or dtype is torch.float32", "float32 = False", "launch_cache"),
    Mutant("notes though someone listens", "kernels/runtime/launch_cache.py", "getattr(before, \"calls\", before) or ", "", "launch_cache"),
    Mutant("strips: a row begun is stored before it is complete", "kernels/conv2d/depthwise_sliding.py", "mask = has_pixel & has_channel & (complete >= first)", "mask = has_pixel & has_channel & (row >= first)", "conv2d"),
    Mutant("strips: dgrad's filters not turned over", "kernels/conv2d/depthwise_sliding.py", "flipped = ALL_TAPS - 1 - tap if ADJOINT else tap", "flipped = tap", "conv2d"),
    Mutant("strips: a row too few", "kernels/conv2d/depthwise_sliding.py", "for row in range(first, last + PENDING):\n        rows = _converted(next_rows", "for row in range(first, last + PENDING - 1):\n        rows = _converted(next_rows", "conv2d"),
    Mutant("strips: the same row again", "kernels/conv2d/depthwise_sliding.py", "next_rows = _load_rows(big_from_small(row + 1, 0, H), source", "next_rows = _load_rows(big_from_small(row, 0, H), source", "conv2d"),
    Mutant("strips: columns past the edge are seen", "kernels/conv2d/depthwise_sliding.py", "tap_exists += (has_pixel & has_channel & inside(left + s * W.dilation, source_width),)", "tap_exists += (has_pixel & has_channel,)", "conv2d"),
    # convolution in boxes
    Mutant("boxes: the last tap that hits is skipped", "kernels/device/indexing.py", "    first = tl.maximum(first, 0)\n    return first, tl.maximum(tl.minimum(last, taps - 1) - first + 1, 0)", "    first = tl.maximum(first, 0)\n    return first, tl.maximum(tl.minimum(last, taps - 1) - first, 0)", "conv2d_tma"),
    Mutant("boxes: taps that hit the first pixel alone", "kernels/device/indexing.py", "first, last = -floor_div(start + reach, STEP), floor_div(size - 1 - start, STEP)", "first, last = -floor_div(start, STEP), floor_div(size - 1 - start, STEP)", "conv2d_tma"),
    Mutant("boxes: a gradient's taps that hit the first pixel alone", "kernels/device/indexing.py", "floor_div(start + reach, -STEP)", "floor_div(start, -STEP)", "conv2d_tma"),
    Mutant("lines: pixels from which the first tap sees the image", "kernels/device/indexing.py", "first = -floor_div(last_tap * AXIS.dilation - AXIS.padding, AXIS.stride)", "first = -floor_div(first_tap * AXIS.dilation - AXIS.padding, AXIS.stride)", "conv2d_tma"),
    Mutant("lines: pixels from which the last tap sees the image", "kernels/device/indexing.py", "last = floor_div(big_size - 1 + AXIS.padding - first_tap * AXIS.dilation, AXIS.stride)", "last = floor_div(big_size - 1 + AXIS.padding - last_tap * AXIS.dilation, AXIS.stride)", "conv2d_tma"),
    Mutant("a counter's digit passes its end", "kernels/device/indexing.py", "    over = digit >= end", "    over = digit > end", "conv2d_tma"),
    Mutant("a counter begins again from 0", "kernels/device/indexing.py", "return tl.where(over, first, digit), tl.where(over, 1, 0)", "return tl.where(over, 0, digit), tl.where(over, 1, 0)", "conv2d_tma"),
    Mutant("lines: every part begins with the first column", "kernels/conv2d/tma_wgrad.py", "q = first_q + first % count_q * (1 if ALONG_IMAGES else BLOCK_K)", "q = first_q", "conv2d_tma"),
    Mutant("lines: every part begins with the first row", "kernels/conv2d/tma_wgrad.py", "first_p + first // count_q % count_p", "first_p", "conv2d_tma"),
    Mutant("lines: every part begins with the first image", "kernels/conv2d/tma_wgrad.py", "n, p = first // (count_q * count_p) * (BLOCK_K if ALONG_IMAGES else 1),", "n, p = first * 0,", "conv2d_tma"),
    Mutant("division towards zero", "kernels/device/indexing.py", "return a // b - (a % b < 0)", "return a // b", "conv2d_tma"),
    Mutant("planes: the second planes are never multiplied", "kernels/device/precision.py", "CROSS_PAIRS = 5", "CROSS_PAIRS = 4", "conv2d_tma"),
    Mutant("planes: one product twice, another never", "kernels/device/precision.py", "(0b01_00_10_00_01 >> 2 * number) & 3", "(0b01_00_10_00_00 >> 2 * number) & 3", "conv2d_tma"),
    Mutant("planes: NaN of small products stays", "kernels/conv2d/tma.py", 'acc = tl.where(tl.abs(acc) < float("inf"), acc, 0.0)', "acc = acc + 0.0", "conv2d_tma"),
    Mutant("planes: the third is what the first leaves", "kernels/conv2d/relayout.py", "return first, second, _bfloat16(rest - widen(second))", "return first, second, _bfloat16(rest)", "relayout"),
    Mutant("planes: the largest number becomes infinite", "kernels/conv2d/relayout.py", 'first = _bfloat16(tl.where(tl.abs(value) < float("inf"), within, value))', "first = _bfloat16(value)", "relayout"),
    Mutant("planes: ties are rounded up", "kernels/conv2d/relayout.py", "0x7FFF + ((bits >> 16) & 1)", "0x8000", "relayout"),
    Mutant("copies: channels that are not there are read", "kernels/conv2d/relayout.py", "exists = tl.max_constancy((lane < filled) & (row < rows), [X_LANES, X_ROWS])", "exists = tl.max_constancy((lane < lanes) & (row < rows), [X_LANES, X_ROWS])", "relayout"),
    Mutant("copies: rows of images start anywhere", "kernels/conv2d/relayout.py", "out = empty(x, (height, width, c, triton.cdiv(n, least) * least)).permute(3, 2, 0, 1)[:n]", "out = empty(x, (height, width, c, n)).permute(3, 2, 0, 1)[:n]", "relayout"),
    Mutant("copies: filters of a narrow group for all channels", "kernels/conv2d/relayout.py", "c = wide - k // filters % at_once * channels", "c = wide % channels", "conv2d_tma"),
    Mutant("boxes copied from any strides", "kernels/conv2d/tma_box.py", "others = [s * image.dtype.itemsize for axis, s in enumerate(strides) if axis != innermost]", "others = [16]", "tma_box"),
    Mutant("boxes copied from any address", "kernels/conv2d/tma_box.py", "begins = image.data_ptr() % 16 == 0 and all(", "begins = all(", "tma_box"),
    Mutant("boxes: rows with gaps as one", "kernels/conv2d/tma_box.py", "(h == 1 or s_h == w * s_w) and (n == 1", "(n == 1", "conv2d_tma tma_box"),
    Mutant("boxes: planes of rows with gaps as one", "kernels/conv2d/tma_box.py", "rows = (w == 1 or s_w == 1) and (h == 1 or s_h == w)", "rows = w == 1 or s_w == 1", "conv2d_tma tma_box"),
    Mutant("boxes: a column's remainder by the stride ignored", "kernels/conv2d/tma.py", "(col - at * SPAN) * source_pitch + channel", "channel", "conv2d_tma"),
    Mutant("boxes: pairs of columns of an odd row", "kernels/conv2d/tma.py", "strided[1] and source.shape[3] % stride[1] != 0)", "False)", "conv2d_tma"),
    Mutant("boxes: every phase of a gradient begins at the first column of taps", "kernels/conv2d/tma.py", "* W.taps + first_s + j * W.tap_step", "* W.taps + j * W.tap_step", "conv2d_tma"),
    Mutant("boxes: a gradient's filters of the first group", "kernels/conv2d/tma.py", "weight_row = source_channel if TRANSPOSED else", "weight_row = 0 if TRANSPOSED else", "conv2d_tma"),
    Mutant("boxes: what no tap hits is multiplied by what is there", "kernels/conv2d/tma.py", "source_channel, weight_row = OUTSIDE, OUTSIDE", "pass", "conv2d_tma"),
    Mutant("boxes: images of the first box alone", "kernels/conv2d/tma.py", "n0 = pixel_tile // (column_tiles * row_tiles) * BOX.images", "n0 = pixel_tile // (column_tiles * row_tiles * image_tiles) * BOX.images", "conv2d_tma"),
    Mutant("boxes: a block of channels reaches into the next group", "kernels/conv2d/tma.py", "if groups > 1 or in_terms or (stride[1] > 1 and not adjoint):", "if in_terms or (stride[1] > 1 and not adjoint):", "conv2d_tma"),
    Mutant("boxes: narrow groups folded as few channels", "kernels/conv2d/tma.py", "stride, padding, dilation, merged * groups)\n", "stride, padding, dilation, groups)\n", "conv2d_tma"),
    Mutant("boxes: the second half stored where the first is", "kernels/conv2d/tma.py", "at = i * (BOX.pixels // HALVES) + tl.arange", "at = tl.arange", "conv2d_tma"),
    Mutant("boxes: statistics of the first half alone", "kernels/conv2d/tma.py", "partial = pixel_tile * HALVES + i", "partial = pixel_tile * HALVES", "conv2d_tma"),
    Mutant("statistics of no pixel are NaN", "kernels/device/epilogue.py", "tl.maximum(tl.sum(in_result.to(tl.int32), axis=0), 1)", "tl.sum(in_result.to(tl.int32), axis=0)", "conv2d_tma"),
    Mutant("boxes: statistics of pixels that are not there", "kernels/conv2d/tma.py", "store_statistics(value, in_result, exists", "store_statistics(value, n >= 0, exists", "conv2d_tma"),
    Mutant("lines: what other groups' channels give is stored", "kernels/conv2d/tma_wgrad.py", "owned &= (k // narrow_filters)[:, None] == (c // narrow_channels)[None, :]", "pass", "conv2d_tma"),
    Mutant("lines: all turns at the first taps of a row", "kernels/conv2d/tma_wgrad.py", "s, program = program % (W.taps // TAPS_W) * TAPS_W,", "s, program = program % (W.taps // TAPS_W) * 0,", "conv2d_tma"),
    Mutant("lines: what no tap hits is multiplied by what is there", "kernels/conv2d/tma_wgrad.py", "x_channel, dy_channel = OUTSIDE, OUTSIDE", "pass", "conv2d_tma"),
    Mutant("lines: every part but the last a line too short", "kernels/conv2d/tma_wgrad.py", "((split + 1) * runs // splits).to(tl.int32)", "((split + 1) * runs // splits - (split + 1 < splits)).to(tl.int32)", "conv2d_tma"),
    Mutant("lines: pixels of images of two sizes as one row", "kernels/conv2d/tma_wgrad.py", "for view in (flat_view, planar_view) if x.shape[2:] == dy.shape[2:] else ():", "for view in (flat_view, planar_view):", "conv2d_tma"),
    Mutant("lines: pairs of columns of an odd row", "kernels/conv2d/tma_wgrad.py", " and (window_copy is not None or x.shape[3] % stride[1] == 0)", "", "tma_box"),
    Mutant("lines: the last that is cut off is left out", "kernels/conv2d/tma_wgrad.py", "triton.cdiv(images, plan.run) if plan.along_images", "images // plan.run if plan.along_images", "conv2d_tma"),
    # linear
    Mutant("bias added by every part", "kernels/linear.py", "(n < N) & (split == 0)", "(n < N)", "linear"),
    Mutant("the last of a part's products lost", "kernels/linear.py", "last = tl.minimum(first + k_per_split, K)", "last = tl.minimum(first + k_per_split - 1, K)", "linear"),
    Mutant("gradient of the bias missing", "layers/linear.py", "ChannelSum.call(dy[:, :, None, None]) if need_b else None", "None", "linear"),
    Mutant("a row past the last exists", "kernels/device/columns.py", "place, c = tl.minimum(place, places - 1), tl.minimum(c, channels - 1)", "c = tl.minimum(c, channels - 1)", "columns"),
    Mutant("walk: parts overlap by a row", "kernels/device/columns.py", "steps = tl.minimum(first + rows_per_split, height) - first", "steps = tl.minimum(first + rows_per_split - 1, height) - first", "columns pool2d"),
    Mutant("walk: the last part goes past the last row", "kernels/device/columns.py", "steps = tl.minimum(first + rows_per_split, height) - first", "steps = rows_per_split", "columns pool2d"),
    Mutant("walk: parts of a tile begin at the first row", "kernels/device/columns.py", "splits - 1) * rows_per_split", "splits - 1) * 0", "columns pool2d"),
    Mutant("walk: columns of other images", "kernels/device/columns.py", "n, col = place // width, place % width\n        else:", "n, col = place % width, place // width\n        else:", "columns pool2d"),
    Mutant("walk: channels as images where they do not lie end to end", "kernels/device/columns.py", "strides and all(s[0] == c * s[1] for s in strides)", "strides", "columns pool2d"),
    Mutant("walk: taps said to be always inside that are not", "kernels/device/columns.py", "min(axis.taps, (size - 1 - last_window) // axis.dilation + 1)", "axis.taps", "columns pool2d"),
    # what follows in the same kernel
    Mutant("ReLU left out", "kernels/device/epilogue.py", "return rectify(acc) if RELU else acc", "return acc", "fused"),
    Mutant("ReLU before the parts are added", "kernels/linear.py", "RELU=relu and splits == 1", "RELU=relu", "fused"),
    Mutant("every channel scaled like the first", "kernels/device/epilogue.py", "tl.load(scale + channel,", "tl.load(scale + channel * 0,", "fused"),
    Mutant("missing pixels count among the deviations", "kernels/device/epilogue.py", "deviation = tl.where(in_result[:, None], value - mean[None, :], 0.0)", "deviation = value - mean[None, :]", "fused"),
    Mutant("the last of equal values in a tile", "kernels/device/epilogue.py", "first_best = tl.min(tl.where(value == best[:, None, :], row, ROWS), axis=1)", "first_best = tl.max(tl.where(value == best[:, None, :], row, -1), axis=1)", "fused"),
    Mutant("the first NaN of a tile", "kernels/device/epilogue.py", "last_nan = tl.max(tl.where(value != value, row, -1), axis=1)", "last_nan = 0 * tl.max(tl.where(value != value, row, -1), axis=1)", "fused"),
    Mutant("windows that hang over pooled in a tile", "kernels/conv2d/fused.py", " and tuple(pooled) == (size[0] // window[0], size[1] // window[1])", "", "fused"),
    Mutant("padding forgotten by a tile's pooling", "kernels/conv2d/fused.py", "max(*window_padding, 0) == 0 and ", "", "fused"),
    Mutant("residual not added", "kernels/batchnorm2d.py", "value += widen(residuals[i]).to(ACCUMULATOR)", "pass", "fused"),
    Mutant("gradient where the ReLU's result is 0", "kernels/batchnorm2d.py", "tl.where(widen(results[i]) <= 0,", "tl.where(widen(results[i]) < 0,", "fused"),
    Mutant("folded: the convolution's bias forgotten", "kernels/batchnorm2d.py", "offset += tl.load(bias + c,", "offset += 0 * tl.load(bias + c,", "fused"),
    Mutant("gradient of the residual missing", "layers/batchnorm2d.py", "db if need_b else None, dz if need_residual else None", "db if need_b else None", "fused"),
    Mutant("modules with hooks fused", "layers/fused.py", "and not module._forward_pre_hooks and not module._forward_hooks", "", "fuse"),
    Mutant("evaluation folded, and gradients lost", "layers/fused_functional.py", "wanted = torch.is_grad_enabled() and any(v is not None", "wanted = False and any(v is not None", "fused"),
    Mutant("a marked result taken by any layer", "layers/fused.py", "if place < len(layers) and layers[place] is module:", "if place < len(layers):", "fuse"),
    Mutant("a class that was patched fused", "layers/fused.py", "_methods(kind) == _PLAIN_METHODS[cls]", "True", "fuse"),
    Mutant("calls moved past what writes their operands", "layers/backend.py", "if effects is None or node not in nodes and any(effects.meets(other) for other in moved):", "if effects is None:", "backend"),
    Mutant("calls moved out of autocast", "layers/backend.py", "if effects is None or node not in nodes and any(effects.meets(other) for other in moved):", "if effects is not None and node not in nodes and any(effects.meets(other) for other in moved):", "backend"),
    Mutant("values that others use fused", "layers/backend.py", "while len(nodes[-1].users) == 1 and", "while nodes[-1].users and", "backend"),
    Mutant("a sum over memory that is seen elsewhere fused", "layers/backend.py", "node.op.startswith(\"call\") and len(node.users) == 1 for node in same", "len(node.users) == 1 for node in [value]", "backend"),
    Mutant("sums of other strides fused", "layers/backend.py", "self._alike(user, value, True)", "self._alike(user, value)", "backend"),
    # pooling
    Mutant("NaN loses", "kernels/device/precision.py", "return (value > best) | (value != value)", "return value > best", "pool2d"),
    Mutant("the last of equal values", "kernels/device/precision.py", "return (value > best) | (value != value)", "return (value >= best) | (value != value)", "pool2d"),
    Mutant("the first of two NaN", "kernels/device/precision.py", "return (value > best) | (value != value)", "return (value > best) | ((value != value) & (best == best))", "pool2d"),
    Mutant("ceil_mode ignored", "layers/window.py", "(stride - 1 if ceil_mode else 0)", "0", "pool2d"),
    Mutant("a window that starts in the far padding", "layers/pool2d.py", "if ceil_mode and (count - 1) * s >= n + p:", "if False:", "pool2d"),
    Mutant("codes of large windows in a byte", "kernels/pool2d.py", "torch.uint8 if kernel and kernel[0] * kernel[1] <= 256 else torch.int32", "torch.uint8", "pool2d adaptive_pool2d"),
    Mutant("indices in rows of the result", "kernels/gather2d.py", "value = h * width + w", "value = h * out_width + w", "pool2d"),
    Mutant("max: a gradient from beyond the edge", "kernels/pool2d.py", "missing += (tl.where(inside(q, out_width), 0, -1),)", "missing += (0,)", "pool2d"),
    Mutant("max: kept rows of the window before last", "kernels/pool2d.py", "bests, taps = bests[R - KEPT :], taps[R - KEPT :]", "bests, taps = bests[:KEPT], taps[:KEPT]", "pool2d"),
    Mutant("max: the winner is a tap in the padding", "kernels/pool2d.py", "first_s += tl.maximum(-left, 0).to(tl.int32)", "first_s += 0", "pool2d"),
    Mutant("max: the winner is a tap in the padding above", "kernels/pool2d.py", "code += tl.maximum(-big_from_small(p, 0, H), 0).to(tl.int32) * S", "code += 0", "pool2d"),
    Mutant("max: rows of windows above a part forgotten", "kernels/pool2d.py", "first - BELOW + a, dys", "-1, dys", "pool2d"),
    Mutant("max: a row of windows below the last", "kernels/pool2d.py", "row_missing = tl.where(inside(p, out_height), 0, -1)", "row_missing = tl.where(p >= 0, 0, -1)", "pool2d"),
    Mutant("max: columns of a pair exchanged", "kernels/pool2d.py", "tl.join(cells[i * 2], cells[i * 2 + 1])", "tl.join(cells[i * 2 + 1], cells[i * 2])", "pool2d"),
    Mutant("max: dilation ignored where a window is found", "kernels/device/windows2d.py", " & (distance % dilation == 0)", "", "pool2d"),
    Mutant("count_include_pad ignored", "kernels/device/windows2d.py", "counted = padding if count_include_pad else (0, 0)", "counted = padding", "pool2d"),
    Mutant("divisor_override ignored", "kernels/device/windows2d.py", "divisors = (divisor_override, 1) if divisor_override is not None else (0, 0)", "divisors = (0, 0)", "pool2d"),
    Mutant("average: a gradient divided by the taps", "kernels/device/windows2d.py", "_count(window, axis, DTYPE), 1)", "axis[2], 1)", "pool2d"),
    Mutant("stride is 1 unless given", "layers/pool2d.py", "stride = kernel if stride is None or", "stride = (1, 1) if stride is None or", "pool2d"),
    Mutant("the last bin ends too soon", "kernels/device/indexing.py", "return cdiv((position + 1) * size, bins)", "return (position + 1) * size // bins", "adaptive_pool2d"),
    Mutant("max: taps counted column by column", "kernels/gather2d.py", "i * code_width + j", "j * code_width + i", "pool2d adaptive_pool2d"),
    Mutant("max: a gradient for all that a window holds", "kernels/gather2d.py", "winner == weight_h * code_width + weight", "winner >= 0", "pool2d adaptive_pool2d"),
    Mutant("average: large integers through float32", "kernels/device/precision.py", "DTYPE.is_int() and value.dtype.is_floating()", "DTYPE.is_int()", "pool2d"),
    Mutant("adaptive: overlapping bins share no gradient", "kernels/device/windows2d.py", "return number, number < bin_end(pixel, axis[1], axis[0]),", "return number, (number < bin_end(pixel, axis[1], axis[0])) & (i < 1),", "adaptive_pool2d"),
    Mutant("adaptive: every bin divides by the largest", "kernels/device/windows2d.py", "return bin_end(position, axis[0], axis[1]) - bin_start(position, axis[0], axis[1])", "return max_in_bin(int(axis[0]), int(axis[1])) + 0 * position", "adaptive_pool2d"),
    Mutant("adaptive: a gradient divided by the first bin", "kernels/device/windows2d.py", "_bin_count(number, axis, DTYPE), 1)", "_bin_count(0 * number, axis, DTYPE), 1)", "adaptive_pool2d"),
    Mutant("adaptive: indices in rows of the result", "kernels/gather2d.py", "value = h * width + w", "value = h * width + h", "adaptive_pool2d"),
    Mutant("unpooling without zeros", "kernels/max_unpool2d.py", "tl.store(y + at, tl.full((FILL,), 0, tl.int32).to(y.dtype.element_ty), mask=place < out_pixels)", "pass", "max_unpool2d"),
    Mutant("unpooling: the first value stays", "kernels/max_unpool2d.py", "lane[None, :] > lane[:, None]", "lane[None, :] < lane[:, None]", "max_unpool2d"),
    Mutant("unpooling: places in columns, not rows", "kernels/max_unpool2d.py", "_place, size[1], channels_last", "_place, size[0], channels_last", "max_unpool2d"),
    Mutant("unpooling: second derivatives do not add up", "layers/max_unpool2d.py", "return ops.max_unpool2d_add(x, indices, size)", "return ops.max_unpool2d_forward(x, indices, size)", "max_unpool2d"),
    # resizing and padding
    Mutant("align_corners ignored", "layers/upsample2d.py", "option = bool(align_corners) if", "option = False if", "upsample2d"),
    Mutant("bilinear weights swapped", "kernels/upsample2d.py", "round_to((1 - down) * upper + down * lower,", "round_to(down * upper + (1 - down) * lower,", "upsample2d"),
    Mutant("bilinear: the row that was kept is another one", "kernels/upsample2d.py", "if all_rows(top == at_lower, TILE):", "if all_rows(top != at_lower, TILE):", "upsample2d"),
    Mutant("bilinear: a row begun is lost", "kernels/upsample2d.py", "            acc, below = below, full_tile(0, TILE, ACCUMULATOR)\n            row += 1\n            while", "            acc, below = full_tile(0, TILE, ACCUMULATOR), below\n            row += 1\n            while", "upsample2d"),
    Mutant("bilinear: rows that nothing reads are skipped", "kernels/upsample2d.py", "while row < top:  # of an image that shrinks, rows that nothing reads", "while row < top - 1:", "upsample2d"),
    Mutant("bilinear: outputs said to read every pixel that do not", "kernels/upsample2d.py", "    low = always.index(True) if any(always) and size <= 2**12 else readers\n    return", "    return TapRange(0, readers)\n    return", "upsample2d"),
    Mutant("the last reader of a pixel missed", "kernels/device/indexing.py", "return max(end(pixel) - first(pixel) for pixel in range(size))", "return max(1, max(end(pixel) - first(pixel) for pixel in range(size)) - 1)", "upsample2d"),
    Mutant("half a pixel forgotten", "kernels/device/indexing.py", "(position.to(scale.dtype) + shift) * scale - shift, 0.0", "position.to(scale.dtype) * scale, 0.0", "upsample2d"),
    Mutant("nearest: no gradient from the last column", "kernels/upsample2d.py", "(reader < out_size) & (nearest_source", "(reader < out_size - 1) & (nearest_source", "upsample2d"),
    Mutant("the scale recomputed from the sizes", "kernels/device/indexing.py", "return [1 / factor for factor in factors] or [n / m", "return [n / m", "upsample2d"),
    Mutant("nearest-exact without its half pixel", "kernels/upsample2d.py", "    shift = 0.5 if exact else 0.0\n    gather2d(x, y", "    shift = 0.0\n    gather2d(x, y", "upsample2d"),
    Mutant("antialiasing of one pixel", "kernels/antialias2d.py", "    support = tl.maximum(scale, 1.0)\n    center", "    support = tl.minimum(scale, 1.0)\n    center", "upsample2d"),
    Mutant("antialiasing weights that do not add up to 1", "kernels/antialias2d.py", "return tl.where(total > 0, total, 1.0)", "return tl.where(total > 0, 1.0, total)", "upsample2d"),
    Mutant("bytes cut off, not rounded", "kernels/device/precision.py", "value = tl.floor(value + 0.5)", "value = tl.floor(value)", "upsample2d"),
    Mutant("reflection repeats the edge", "kernels/pad2d.py", "(size - 1) - tl.abs((size - 1) - tl.abs(position - near))", "(size - 1) - tl.abs((size - 1) - tl.abs(position - near + 1) + 1)", "pad2d"),
    Mutant("circular padding off by one", "kernels/pad2d.py", "return (position - near + size) % size", "return (position - near + size - 1) % size", "pad2d"),
    Mutant("replicating the second pixel", "kernels/pad2d.py", "tl.minimum(tl.maximum(position - near, 0), size - 1)", "tl.minimum(tl.maximum(position - near, 1), size - 1)", "pad2d"),
    Mutant("replicating: no gradient from beyond the far edge", "kernels/pad2d.py", "tl.where(position == size - 1, out_size - 1, position + near)", "position + near", "pad2d"),
    # batch norm
    Mutant("eps outside of the root", "kernels/batchnorm2d.py", "scale = tl.rsqrt(tl.load(var + c, mask=exists).to(ACCUMULATOR) + tl.full((), eps, ACCUMULATOR))", "scale = 1 / (tl.sqrt(tl.load(var + c, mask=exists).to(ACCUMULATOR)) + tl.full((), eps, ACCUMULATOR))", "batchnorm2d"),
    Mutant("variance as a difference of large numbers", "kernels/statistics2d.py", 'origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)', "origin = origin * 0", "batchnorm2d"),
    Mutant("the mean of an infinity is NaN", "kernels/statistics2d.py", 'origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)', "origin = origin * 1", "hard_inputs"),
    Mutant("what the merged mean has left over is lost", "kernels/statistics2d.py", 'tl.where(tl.abs(center) < float("inf"), shift, 0.0)', "tl.where(center == 0, shift, 0.0)", "batchnorm2d"),
    Mutant("parts merged without the distance of their means", "kernels/statistics2d.py", "(tl.load(variances + at, mask=mask, other=0.0) + deviation * deviation)", "tl.load(variances + at, mask=mask, other=0.0)", "batchnorm2d"),
    Mutant("running variance biased", "kernels/statistics2d.py", "new_var = tl.load(var + c, mask=c < channels) * tl.full((), correction, var.dtype.element_ty)", "new_var = tl.load(var + c, mask=c < channels)", "batchnorm2d"),
    Mutant("momentum the wrong way round", "kernels/statistics2d.py", "new_mean = step * new_mean + (1 - step) * old_mean", "new_mean = (1 - step) * new_mean + step * old_mean", "batchnorm2d"),
    Mutant("running statistics not moved", "layers/batchnorm2d.py", "if running_mean is not None and x.numel() > 0:", "if False:", "batchnorm2d"),
    Mutant("evaluation by the batch's statistics", "layers/batchnorm2d.py", "bias, *more, eps, training)", "bias, *more, eps, True)", "batchnorm2d"),
    Mutant("evaluation's gradient is that of training", "layers/batchnorm2d.py", "w, sums if batch else None, eps) if want_x", "w, sums, eps) if want_x", "batchnorm2d"),
    Mutant("running statistics shared with a graph", "layers/batchnorm2d.py", "mean, var = running_mean.clone(), running_var.clone()", "mean, var = running_mean, running_var", "batchnorm2d"),
    Mutant("second derivative without the deviation", "layers/batchnorm2d.py", "to_x = to_x - scale * s * moved", "to_x = to_x - scale * moved", "batchnorm2d"),
    Mutant("gradient of the input without its second sum", "kernels/batchnorm2d.py", "value -= level + (widen(values[i]).to(ACCUMULATOR) - center) * slope", "value -= level", "batchnorm2d"),
    Mutant("a process's sums as those of all", "layers/sync_batchnorm.py", "of_all = _sum(_gathered(sums, group)).view(sums.shape)", "of_all = sums", "sync_batchnorm"),
    Mutant("sums of all over the pixels of one process", "layers/sync_batchnorm.py", "w, of_all, eps, pixels)", "w, of_all, eps)", "sync_batchnorm"),
    Mutant("the last process's sums forgotten", "layers/sync_batchnorm.py", "ops.channel_sum(parts.reshape(len(parts), -1, 1, 1))", "ops.channel_sum(parts[:-1].reshape(len(parts) - 1, -1, 1, 1))", "sync_batchnorm"),
    Mutant("every process has as many pixels", "layers/sync_batchnorm.py", "mean.new_full((1,), _pixels(x))", "mean.new_full((1,), 1)", "sync_batchnorm"),
    Mutant("running variance biased where the host counts nothing", "kernels/statistics2d.py", "correction = divide(count, count - 1)", "correction = divide(count, count)", "sync_batchnorm"),
    Mutant("nothing moves the running statistics", "kernels/statistics2d.py", "channels = tl.where(count > 0, channels, 0)", "channels = channels + 0", "sync_batchnorm"),
    Mutant("converted to torch's", "layers/sync_batchnorm.py", "converted.__class__ = cls", "pass", "sync_batchnorm"),
    Mutant("evaluation waits for other processes", "layers/sync_batchnorm.py", "_others(module) if module.training else None", "_others(module)", "sync_batchnorm"),
    # the walk down the rows, which batch normalisation and sums of channels share
    Mutant("the last row forgotten", "kernels/device/walk.py", "tl.minimum(first + grid.rows_per_split, grid.rows)", "tl.minimum(first + grid.rows_per_split, grid.rows - 1)", "batchnorm2d"),
    Mutant("parameters of another channel", "kernels/device/walk.py", "return column, exists, column // grid.inner", "return column, exists, column % grid.channels", "batchnorm2d"),
    Mutant("the first tile read again and again", "kernels/device/walk.py", "at = row + i * TILE.rows\n", "at = row\n", "batchnorm2d"),
    Mutant("lanes that idle are summed", "kernels/device/walk.py", "tl.where((pixel < pixels) & (channel < grid.together), value, 0.0)", "value", "batchnorm2d"),
    Mutant("variance without what columns differ by", "kernels/statistics2d.py", "count_of_tile * (mean * mean)", "0 * mean", "batchnorm2d"),
    Mutant("every row of a tile as full as the first", "kernels/statistics2d.py", "cdiv(last - first - place // TILE.pixels, TILE.rows)", "cdiv(last - first - place * 0, TILE.rows)", "batchnorm2d"),
    Mutant("the last pixel of a plane forgotten", "kernels/reduce.py", "last = tl.minimum((split + 1) * pixels_per_split, pixels)", "last = tl.minimum((split + 1) * pixels_per_split, pixels - 1)", "plane_mean"),
    Mutant("planes as long as a power of two", "kernels/reduce.py", "tl.reshape(column * pixels + row,", "tl.reshape(column * TILE.pixels + row,", "plane_mean"),
    # relu
    Mutant("gradient 1 at zero", "kernels/relu.py", "tl.where(widen(value) <= 0, tl.zeros_like(upstream), upstream)", "tl.where(widen(value) < 0, tl.zeros_like(upstream), upstream)", "relu"),
    Mutant("no gradient at NaN", "kernels/relu.py", "tl.where(widen(value) <= 0, tl.zeros_like(upstream), upstream)", "tl.where(widen(value) > 0, upstream, tl.zeros_like(upstream))", "relu"),
    Mutant("NaN becomes zero", "kernels/relu.py", "tl.where(widen(value) < 0, tl.zeros_like(value), value)", "tl.where(widen(value) > 0, value, tl.zeros_like(value))", "relu"),
    Mutant("a program too few", "kernels/relu.py", "_relu_kernel, triton.cdiv(x.numel(), block), x, dy", "_relu_kernel, x.numel() // block, x, dy", "relu"),
    # tensors
    Mutant("offsets always of 32 bits", "kernels/runtime/layout.py", "return tl.int64 if settings.int64_offsets or exceeds_int32(*tensors) else tl.int32", "return tl.int32", "large_tensors"),
    Mutant("channels_last not recognised", "kernels/runtime/layout.py", "return any(_has_channels_last_strides(t) for t in tensors)", "return False", "conv2d pool2d"),
    Mutant("channels_last only if all are", "kernels/runtime/layout.py", "return any(_has_channels_last_strides(t) for t in tensors)", "return all(_has_channels_last_strides(t) for t in tensors)", "conv2d"),
    Mutant("one pixel is channels_last", "kernels/runtime/layout.py", "if tensor.stride(axis) < least or (axis == 0 and least == tensor.stride(1)):", "if tensor.stride(axis) < least:", "upsample2d"),
    Mutant("axes walked as one that do not lie end to end", "kernels/runtime/layout.py", "if merged and strides == [merged[-1][0] * stride for stride in merged[-1][1]]:", "if merged:", "relu"),
    Mutant("memory read past the end", "kernels/relu.py", "value = tl.load(x + offset_of(element, sizes, x_strides), mask=element < elements)", "value = tl.load(x + offset_of(element + 1, sizes, x_strides), mask=element < elements)", "relu bounds"),
    Mutant("writing over a tensor goes unsaid", "kernels/runtime/op.py", "torch.autograd.graph.increment_version(args[place])", "pass", "relu"),
]  # fmt: skip


class Outcome(NamedTuple):
    """`caught` names the test that failed, if one did."""

    mutant: Mutant
    caught: str | None
    seconds: float


def mutated(mutant: Mutant) -> str:
    """The file with the mutation."""
    source = (ROOT / mutant.file).read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its line stands {source.count(mutant.old)} times in {mutant.file}")
    return source.replace(mutant.old, mutant.new)


def run(mutant: Mutant) -> Outcome:
    """Look whether the tests notice."""
    start = time.monotonic()
    with copy_of_the_tree() as copy:
        (copy / mutant.file).write_text(mutated(mutant))
        caught = first_failure(copy, *(f"tests/test_{name}.py" for name in mutant.tests.split())) or first_failure(copy)
    if caught not in (None, HANGS, CRASHES) and fails_anyway(caught):
        raise RuntimeError(f"{mutant.name}: {caught} fails in an untouched copy too")
    return Outcome(mutant, caught, time.monotonic() - start)


@contextlib.contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "trinn"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "out"), symlinks=True)
        yield copy


@functools.cache
def fails_anyway(test: str) -> bool:
    with copy_of_the_tree() as copy:
        return first_failure(copy, f"tests/{test}") is not None


def first_failure(folder: Path, *tests: str) -> str | None:
    """The first of these tests, or of all, that fails: its file and name."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return HANGS
    if done.returncode == 0:
        return None
    if -done.returncode in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):  # what was written outside of a tensor
        return CRASHES
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - |$)", done.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"pytest ends with {done.returncode}:\n{done.stdout[-2000:]}")
    return failed[1]


def recorded() -> dict[str, list[Any]]:
    """What is known of each mutant by its name."""
    path = evidence.DOCS / "evidence" / "mutants.json"
    return {row[0]: row for row in json.loads(path.read_text())["mutants"]} if path.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression that the name of a mutant or its file must fit")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--record", action="store_true", help="keep the result, next to that of mutants not chosen")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if re.search(options.only, f"{mutant.name} {mutant.file}")]
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(run, chosen):
            outcomes.append(outcome)
            verdict = f"caught by {outcome.caught}" if outcome.caught else "NOT CAUGHT"
            print(f"{outcome.mutant.name:52} {outcome.mutant.file:28} {outcome.seconds:5.0f} s  {verdict}", flush=True)
    missed = [outcome for outcome in outcomes if not outcome.caught]
    print(f"\n{len(outcomes) - len(missed)} of {len(outcomes)} mutants caught")
    if options.record:
        known = recorded() | {o.mutant.name: [o.mutant.name, o.mutant.file, o.caught, round(o.seconds)] for o in outcomes}
        evidence.record("mutants", {"mutants": [known[mutant.name] for mutant in MUTANTS if mutant.name in known]})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
