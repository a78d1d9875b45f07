"""Mutation tests: `make mutants` breaks the sources in one place at a time, and `make test` must fail.

Each mutant replaces a line of the sources in a scratch copy. The tests of its operator run first, and the whole suite only if
they pass. A mutant is caught if a test fails there but passes in an unmodified copy, or if a test hangs or crashes.
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
TIMEOUT = 1200  # seconds
HANGS, CRASHES = "a test hangs", "a test crashes"


class Mutant(NamedTuple):
    """`new` replaces `old`, a text with one occurrence in the file; `tests` names the tests to run first."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # the window equation
    Mutant("the tap is off by one", "kernels/device/indexing.py", "- AXIS.padding + tap * AXIS.dilation", "- AXIS.padding + (tap + 1) * AXIS.dilation", "conv2d"),
    Mutant("dilation is ignored", "kernels/device/indexing.py", "- AXIS.padding + tap * AXIS.dilation", "- AXIS.padding + tap", "pool2d"),
    Mutant("padding is added instead of subtracted", "kernels/device/indexing.py", "small * AXIS.stride - AXIS.padding +", "small * AXIS.stride + AXIS.padding +", "conv2d"),
    Mutant("the pixel after the last is inside the image", "kernels/device/indexing.py", "(position < size)", "(position <= size)", "conv2d"),
    Mutant("a strided gradient uses the wrong phase", "kernels/device/indexing.py", "shifted % AXIS.stride) // AXIS.gcd * AXIS.inverse", "shifted % AXIS.stride) // AXIS.gcd", "conv2d"),
    Mutant("one tap of a pixel is missing", "kernels/device/indexing.py", "hits = cdiv(AXIS.taps - tap, AXIS.tap_step)", "hits = (AXIS.taps - tap) // AXIS.tap_step", "conv2d"),
    Mutant("pixels without taps get one", "kernels/device/indexing.py", "tl.where(shifted % AXIS.gcd == 0, hits, 0)", "hits", "conv2d pool2d"),
    Mutant("rows and columns are swapped", "kernels/device/indexing.py", "return row // height, row % height, pixel % width", "return row // height, pixel % width, row % height", "conv2d"),
    # convolution
    Mutant("filters are transposed", "kernels/conv2d/pointer.py", "r, s = i, j\n", "r, s = j, i\n", "conv2d"),
    Mutant("every phase of a gradient begins with the first tap", "kernels/conv2d/pointer.py", "r, s = first_r + i * H.tap_step, first_s + j * W.tap_step", "r, s = i * H.tap_step, j * W.tap_step", "conv2d"),
    Mutant("the largest number of taps is rounded down", "kernels/device/indexing.py", "return -(-self.taps // self.tap_step)", "return self.taps // self.tap_step", "pool2d"),
    Mutant("the last block of channels and taps is missing", "kernels/conv2d/pointer.py", "for start in range(0, depth, BLOCK_K):", "for start in range(0, depth - BLOCK_K + 1, BLOCK_K):", "conv2d"),
    Mutant("groups read channels from the first channel on", "kernels/conv2d/pointer.py", "source += group * channels_in * x_c", "source += group * x_c", "conv2d"),
    Mutant("every group uses the first group's filters", "kernels/conv2d/pointer.py", "weight += group * weight_group", "weight += group * 0", "conv2d"),
    Mutant("the bias is from the wrong group", "kernels/conv2d/pointer.py", "apply_epilogue(acc, scale, bias, channel_of_all,", "apply_epilogue(acc, scale, bias, channel,", "conv2d"),
    Mutant("the bias is added twice", "kernels/device/epilogue.py", "acc += tl.load(bias + channel", "acc += 2 * tl.load(bias + channel", "conv2d"),
    Mutant("every phase of a gradient begins with the first pixel", "kernels/conv2d/pointer.py", "row, col = first_row + row * H.stride, first_col + col * W.stride", "row, col = row * H.stride, col * W.stride", "conv2d"),
    Mutant("wgrad: the last pixel of each split is missing", "kernels/conv2d/pointer.py", "last = tl.minimum(first + pixels_per_split, pixels)", "last = tl.minimum(first + pixels_per_split - 1, pixels)", "conv2d"),
    Mutant("wgrad: dilation is ignored", "kernels/conv2d/pointer.py", "down, right = r * H.dilation, s * W.dilation", "down, right = r, s", "conv2d"),
    Mutant("a phase without taps divides by zero", "kernels/conv2d/pointer.py", "across = tl.maximum(taps_w, 1)", "across = taps_w", "compiled"),
    Mutant("partial sums: the first block is missing", "kernels/reduce.py", "for start in range(0, splits, SPLITS):", "for start in range(SPLITS, splits, SPLITS):", "conv2d linear"),
    Mutant("partial sums have 16 bits", "kernels/reduce.py", "    dtype = torch.float64 if total.dtype == torch.float64 else torch.float32\n", "    dtype = total.dtype\n", "conv2d linear"),
    Mutant("the bias's gradient lacks its last block", "kernels/reduce.py", "acc += widen(values[i]).to(ACCUMULATOR)", "acc += tl.where(row + TILE.rows * TILE.ahead < last, widen(values[i]).to(ACCUMULATOR), 0.0)", "conv2d linear"),
    Mutant("depthwise: all channels use one filter", "kernels/conv2d/depthwise.py", "at = channel * w_k +", "at = channel * 0 +", "conv2d"),
    Mutant("depthwise: the second filter reads the next channel", "kernels/conv2d/depthwise.py", "(channel // FILTERS) * x_c", "(channel % channels) * x_c", "conv2d"),
    Mutant("depthwise: dgrad uses the first filter only", "kernels/conv2d/depthwise.py", "for f in range(FILTERS):", "for f in range(1):", "conv2d"),
    Mutant("depthwise: wgrad of the second filter reads the next channel", "kernels/conv2d/depthwise.py", "((k // FILTERS) * x_c)", "((k % (filters // FILTERS)) * x_c)", "conv2d"),
    Mutant("sums are rounded to the input's dtype", "kernels/device/precision.py", "return acc + product if APART else product", "return (acc + product if APART else product).to(tl.float16).to(acc.dtype)", "conv2d linear"),
    Mutant("output_padding is ignored", "layers/window.py", "- 2 * p + extra for", "- 2 * p for", "conv_transpose2d"),
    Mutant("padding='same': the odd pixel is at the near edge", "layers/window.py", "return (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)", "return (total[0] - total[0] // 2, total[1] - total[1] // 2), (total[0] // 2, total[1] // 2)", "conv2d"),
    Mutant("transposed convolution: the bias has no gradient", "layers/conv2d.py", "return ddy, dw, ChannelSum.call(ddx) if need_b else None", "return ddy, dw", "conv_transpose2d"),
    Mutant("wgrad: a second derivative is missing", "layers/conv2d.py", "ddy = Conv2dFprop.call(x, ddw, None, dy.shape[2:], *geometry) if need_dy else None", "ddy = None", "conv2d"),
    Mutant("autocast casts float64 too", "layers/function.py", "t.is_floating_point() and t.dtype != torch.float64 else t", "t.is_floating_point() else t", "autocast"),
    Mutant("function transforms get the eager form of a Function", "layers/function.py", "if _is_transformed():", "if False:", "function"),
    Mutant("TF32 is used although forbidden", "kernels/device/precision.py", 'return "tf32" if allowed == "tf32" else "tf32x3"', 'return "tf32"', "precision"),
    Mutant("unneeded gradients are computed", "layers/conv2d.py", "if need_w else None\n    return dx, dw, ChannelSum.call(dy)", "\n    return dx, dw, ChannelSum.call(dy)", "launch"),
    Mutant("launch cache: the key lacks alignment", "kernels/runtime/launch_cache.py", "arg.stride(), arg.data_ptr() % 16, arg", "arg.stride(), arg", "launch_cache"),
    Mutant("launch cache: the key lacks strides", "kernels/runtime/launch_cache.py", "arg.shape, arg.stride(), ", "arg.shape, ", "launch_cache"),
    Mutant("launch cache: the key lacks precision", "kernels/runtime/launch_cache.py", "float32 = float32 or dtype is torch.float32", "float32 = False", "launch_cache"),
    Mutant("launch cache: a cached call skips Triton's launch hooks", "kernels/runtime/launch_cache.py", "getattr(before, \"calls\", before) or ", "", "launch_cache"),
    Mutant("sliding depthwise: incomplete rows are stored", "kernels/conv2d/depthwise_sliding.py", "mask = has_pixel & has_channel & (complete >= first)", "mask = has_pixel & has_channel & (row >= first)", "conv2d"),
    Mutant("sliding depthwise: dgrad does not flip the filters", "kernels/conv2d/depthwise_sliding.py", "flipped = ALL_TAPS - 1 - tap if ADJOINT else tap", "flipped = tap", "conv2d"),
    Mutant("sliding depthwise: the last row is missing", "kernels/conv2d/depthwise_sliding.py", "for row in range(first, last + PENDING):\n        rows = _converted(next_rows", "for row in range(first, last + PENDING - 1):\n        rows = _converted(next_rows", "conv2d"),
    Mutant("sliding depthwise: the same row is loaded again", "kernels/conv2d/depthwise_sliding.py", "next_rows = _load_rows(big_from_small(row + 1, 0, H), source", "next_rows = _load_rows(big_from_small(row, 0, H), source", "conv2d"),
    Mutant("sliding depthwise: columns past the edge are read", "kernels/conv2d/depthwise_sliding.py", "tap_exists += (has_pixel & has_channel & inside(left + s * W.dilation, source_width),)", "tap_exists += (has_pixel & has_channel,)", "conv2d"),
    # convolution through TMA
    Mutant("TMA: the last tap inside the image is skipped", "kernels/device/indexing.py", "    first = tl.maximum(first, 0)\n    return first, tl.maximum(tl.minimum(last, taps - 1) - first + 1, 0)", "    first = tl.maximum(first, 0)\n    return first, tl.maximum(tl.minimum(last, taps - 1) - first, 0)", "conv2d_tma"),
    Mutant("TMA: taps outside the image for the first pixel of a tile are skipped", "kernels/device/indexing.py", "first, last = -floor_div(start + reach, STEP), floor_div(size - 1 - start, STEP)", "first, last = -floor_div(start, STEP), floor_div(size - 1 - start, STEP)", "conv2d_tma"),
    Mutant("TMA: dgrad skips taps outside the image for the first pixel of a tile", "kernels/device/indexing.py", "floor_div(start + reach, -STEP)", "floor_div(start, -STEP)", "conv2d_tma"),
    Mutant("TMA wgrad: the first pixel depends on the first tap", "kernels/device/indexing.py", "first = -floor_div(last_tap * AXIS.dilation - AXIS.padding, AXIS.stride)", "first = -floor_div(first_tap * AXIS.dilation - AXIS.padding, AXIS.stride)", "conv2d_tma"),
    Mutant("TMA wgrad: the last pixel depends on the last tap", "kernels/device/indexing.py", "last = floor_div(big_size - 1 + AXIS.padding - first_tap * AXIS.dilation, AXIS.stride)", "last = floor_div(big_size - 1 + AXIS.padding - last_tap * AXIS.dilation, AXIS.stride)", "conv2d_tma"),
    Mutant("a digit of a counter passes its end", "kernels/device/indexing.py", "    over = digit >= end", "    over = digit > end", "conv2d_tma"),
    Mutant("a digit of a counter restarts from 0", "kernels/device/indexing.py", "return tl.where(over, first, digit), tl.where(over, 1, 0)", "return tl.where(over, 0, digit), tl.where(over, 1, 0)", "conv2d_tma"),
    Mutant("TMA wgrad: every split begins with the first column", "kernels/conv2d/tma_wgrad.py", "q = first_q + first % count_q * (1 if ALONG_IMAGES else BLOCK_K)", "q = first_q", "conv2d_tma"),
    Mutant("TMA wgrad: every split begins with the first row", "kernels/conv2d/tma_wgrad.py", "first_p + first // count_q % count_p", "first_p", "conv2d_tma"),
    Mutant("TMA wgrad: every split begins with the first image", "kernels/conv2d/tma_wgrad.py", "n, p = first // (count_q * count_p) * (BLOCK_K if ALONG_IMAGES else 1),", "n, p = first * 0,", "conv2d_tma"),
    Mutant("division rounds towards zero", "kernels/device/indexing.py", "return a // b - (a % b < 0)", "return a // b", "conv2d_tma"),
    Mutant("bf16 terms: the product of the second terms is missing", "kernels/device/precision.py", "CROSS_PAIRS = 5", "CROSS_PAIRS = 4", "conv2d_tma"),
    Mutant("bf16 terms: one product is computed twice and another is missing", "kernels/device/precision.py", "(0b01_00_10_00_01 >> 2 * number) & 3", "(0b01_00_10_00_00 >> 2 * number) & 3", "conv2d_tma"),
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
    Mutant("TMA: the second half of a tile is stored over the first", "kernels/conv2d/tma.py", "at = i * (BOX.pixels // HALVES) + tl.arange", "at = tl.arange", "conv2d_tma"),
    Mutant("TMA: both halves of a tile store statistics to the same position", "kernels/conv2d/tma.py", "partial = pixel_tile * HALVES + i", "partial = pixel_tile * HALVES", "conv2d_tma"),
    Mutant("statistics of no pixels are NaN", "kernels/device/epilogue.py", "tl.maximum(tl.sum(in_result.to(tl.int32), axis=0), 1)", "tl.sum(in_result.to(tl.int32), axis=0)", "conv2d_tma"),
    Mutant("TMA: statistics include missing pixels", "kernels/conv2d/tma.py", "store_statistics(value, in_result, exists", "store_statistics(value, n >= 0, exists", "conv2d_tma"),
    Mutant("TMA wgrad: products with other groups' channels are stored", "kernels/conv2d/tma_wgrad.py", "owned &= (k // narrow_filters)[:, None] == (c // narrow_channels)[None, :]", "pass", "conv2d_tma"),
    Mutant("TMA wgrad: every program has the first taps of a row", "kernels/conv2d/tma_wgrad.py", "s, program = program % (W.taps // TAPS_W) * TAPS_W,", "s, program = program % (W.taps // TAPS_W) * 0,", "conv2d_tma"),
    Mutant("TMA wgrad: a split without runs is not multiplied by zeros", "kernels/conv2d/tma_wgrad.py", "x_channel, dy_channel = OUTSIDE, OUTSIDE", "pass", "conv2d_tma"),
    Mutant("TMA wgrad: every split but the last lacks its last run", "kernels/conv2d/tma_wgrad.py", "((split + 1) * runs // splits).to(tl.int32)", "((split + 1) * runs // splits - (split + 1 < splits)).to(tl.int32)", "conv2d_tma"),
    Mutant("TMA wgrad: pixels of images with different sizes form one row", "kernels/conv2d/tma_wgrad.py", "for view in (flat_view, planar_view) if x.shape[2:] == dy.shape[2:] else ():", "for view in (flat_view, planar_view):", "conv2d_tma"),
    Mutant("TMA wgrad: an odd row is viewed as pairs of columns", "kernels/conv2d/tma_wgrad.py", " and (window_copy is not None or x.shape[3] % stride[1] == 0)", "", "tma_box"),
    Mutant("TMA wgrad: the partial last run is missing", "kernels/conv2d/tma_wgrad.py", "triton.cdiv(images, plan.run) if plan.along_images", "images // plan.run if plan.along_images", "conv2d_tma"),
    # linear
    Mutant("every split adds the bias", "kernels/linear.py", "(n < N) & (split == 0)", "(n < N)", "linear"),
    Mutant("the last product of each split is missing", "kernels/linear.py", "last = tl.minimum(first + k_per_split, K)", "last = tl.minimum(first + k_per_split - 1, K)", "linear"),
    Mutant("the bias has no gradient", "layers/linear.py", "ChannelSum.call(dy[:, :, None, None]) if need_b else None", "None", "linear"),
    Mutant("a column past the last is read", "kernels/device/columns.py", "place, c = tl.minimum(place, places - 1), tl.minimum(c, channels - 1)", "c = tl.minimum(c, channels - 1)", "columns"),
    Mutant("columns: the last row of each split is missing", "kernels/device/columns.py", "steps = tl.minimum(first + rows_per_split, height) - first", "steps = tl.minimum(first + rows_per_split - 1, height) - first", "columns pool2d"),
    Mutant("columns: the last split continues past the last row", "kernels/device/columns.py", "steps = tl.minimum(first + rows_per_split, height) - first", "steps = rows_per_split", "columns pool2d"),
    Mutant("columns: every split begins with the first row", "kernels/device/columns.py", "splits - 1) * rows_per_split", "splits - 1) * 0", "columns pool2d"),
    Mutant("columns: image and column are swapped", "kernels/device/columns.py", "n, col = place // width, place % width\n        else:", "n, col = place % width, place // width\n        else:", "columns pool2d"),
    Mutant("columns: channels and images are merged although not contiguous", "kernels/device/columns.py", "strides and all(s[0] == c * s[1] for s in strides)", "strides", "columns pool2d"),
    Mutant("columns: taps count as always inside the image although some are not", "kernels/device/columns.py", "min(axis.taps, (size - 1 - last_window) // axis.dilation + 1)", "axis.taps", "columns pool2d"),
    # fused operators
    Mutant("ReLU is missing", "kernels/device/epilogue.py", "return rectify(acc) if RELU else acc", "return acc", "fused"),
    Mutant("ReLU is applied before the splits are added", "kernels/linear.py", "RELU=relu and splits == 1", "RELU=relu", "fused"),
    Mutant("every channel has the first channel's scale", "kernels/device/epilogue.py", "tl.load(scale + channel,", "tl.load(scale + channel * 0,", "fused"),
    Mutant("missing pixels count in the variance", "kernels/device/epilogue.py", "deviation = tl.where(in_result[:, None], value - mean[None, :], 0.0)", "deviation = value - mean[None, :]", "fused"),
    Mutant("pooling in a tile selects the last of equal values", "kernels/device/epilogue.py", "first_best = tl.min(tl.where(value == best[:, None, :], row, ROWS), axis=1)", "first_best = tl.max(tl.where(value == best[:, None, :], row, -1), axis=1)", "fused"),
    Mutant("pooling in a tile selects the first row for NaN", "kernels/device/epilogue.py", "last_nan = tl.max(tl.where(value != value, row, -1), axis=1)", "last_nan = 0 * tl.max(tl.where(value != value, row, -1), axis=1)", "fused"),
    Mutant("overhanging windows are pooled in a tile", "kernels/conv2d/fused.py", " and tuple(pooled) == (size[0] // window[0], size[1] // window[1])", "", "fused"),
    Mutant("pooling in a tile ignores padding", "kernels/conv2d/fused.py", "max(*window_padding, 0) == 0 and ", "", "fused"),
    Mutant("the residual is not added", "kernels/batchnorm2d.py", "value += widen(residuals[i]).to(ACCUMULATOR)", "pass", "fused"),
    Mutant("ReLU passes a gradient where its result is 0", "kernels/batchnorm2d.py", "tl.where(widen(results[i]) <= 0,", "tl.where(widen(results[i]) < 0,", "fused"),
    Mutant("fused evaluation ignores the convolution's bias", "kernels/batchnorm2d.py", "offset += tl.load(bias + c,", "offset += 0 * tl.load(bias + c,", "fused"),
    Mutant("the residual has no gradient", "layers/batchnorm2d.py", "db if need_b else None, dz if need_residual else None", "db if need_b else None", "fused"),
    Mutant("modules with hooks are fused", "layers/fused.py", "and not module._forward_pre_hooks and not module._forward_hooks", "", "fuse"),
    Mutant("fused evaluation loses gradients", "layers/fused_functional.py", "wanted = torch.is_grad_enabled() and any(v is not None", "wanted = False and any(v is not None", "fused"),
    Mutant("any layer accepts a marked result", "layers/fused.py", "if place < len(layers) and layers[place] is module:", "if place < len(layers):", "fuse"),
    Mutant("a patched class is fused", "layers/fused.py", "_methods(kind) == _PLAIN_METHODS[cls]", "True", "fuse"),
    Mutant("calls move past writes to their operands", "layers/backend.py", "if effects is None or node not in nodes and any(effects.meets(other) for other in moved):", "if effects is None:", "backend"),
    Mutant("calls move out of autocast", "layers/backend.py", "if effects is None or node not in nodes and any(effects.meets(other) for other in moved):", "if effects is not None and node not in nodes and any(effects.meets(other) for other in moved):", "backend"),
    Mutant("values with other users are fused", "layers/backend.py", "while len(nodes[-1].users) == 1 and", "while nodes[-1].users and", "backend"),
    Mutant("an in-place sum on shared memory is fused", "layers/backend.py", "node.op.startswith(\"call\") and len(node.users) == 1 for node in same", "len(node.users) == 1 for node in [value]", "backend"),
    Mutant("sums with different strides are fused", "layers/backend.py", "self._alike(user, value, True)", "self._alike(user, value)", "backend"),
    Mutant("a replaced call keeps torch's strides", "layers/backend.py", "        node.meta |= meta\n", "", "backend"),
    # pooling
    Mutant("max pooling ignores NaN", "kernels/device/precision.py", "return (value > best) | (value != value)", "return value > best", "pool2d"),
    Mutant("max pooling selects the last of equal values", "kernels/device/precision.py", "return (value > best) | (value != value)", "return (value >= best) | (value != value)", "pool2d"),
    Mutant("max pooling selects the first of two NaN", "kernels/device/precision.py", "return (value > best) | (value != value)", "return (value > best) | ((value != value) & (best == best))", "pool2d"),
    Mutant("ceil_mode is ignored", "layers/window.py", "(stride - 1 if ceil_mode else 0)", "0", "pool2d"),
    Mutant("a window starts in the far padding", "layers/pool2d.py", "if ceil_mode and (count - 1) * s >= n + p:", "if False:", "pool2d"),
    Mutant("argmax codes of large windows are stored in a byte", "kernels/pool2d.py", "torch.uint8 if kernel and kernel[0] * kernel[1] <= 256 else torch.int32", "torch.uint8", "pool2d adaptive_pool2d"),
    Mutant("argmax indices use the width of the result", "kernels/gather2d.py", "value = h * width + w", "value = h * out_width + w", "pool2d"),
    Mutant("max pooling: a gradient comes from beyond the edge", "kernels/pool2d.py", "missing += (tl.where(inside(q, out_width), 0, -1),)", "missing += (0,)", "pool2d"),
    Mutant("max pooling: the wrong rows are kept for the next window", "kernels/pool2d.py", "bests, taps = bests[R - KEPT :], taps[R - KEPT :]", "bests, taps = bests[:KEPT], taps[:KEPT]", "pool2d"),
    Mutant("max pooling: the argmax is a tap in the padding on the left", "kernels/pool2d.py", "first_s += tl.maximum(-left, 0).to(tl.int32)", "first_s += 0", "pool2d"),
    Mutant("max pooling: the argmax is a tap in the padding above", "kernels/pool2d.py", "code += tl.maximum(-big_from_small(p, 0, H), 0).to(tl.int32) * S", "code += 0", "pool2d"),
    Mutant("max pooling: rows of windows above a split are missing", "kernels/pool2d.py", "first - BELOW + a, dys", "-1, dys", "pool2d"),
    Mutant("max pooling: a row of windows below the last is read", "kernels/pool2d.py", "row_missing = tl.where(inside(p, out_height), 0, -1)", "row_missing = tl.where(p >= 0, 0, -1)", "pool2d"),
    Mutant("max pooling: the columns of a pair are swapped", "kernels/pool2d.py", "tl.join(cells[i * 2], cells[i * 2 + 1])", "tl.join(cells[i * 2 + 1], cells[i * 2])", "pool2d"),
    Mutant("max pooling: the search for a window ignores dilation", "kernels/device/windows2d.py", " & (distance % dilation == 0)", "", "pool2d"),
    Mutant("count_include_pad is ignored", "kernels/device/windows2d.py", "counted = padding if count_include_pad else (0, 0)", "counted = padding", "pool2d"),
    Mutant("divisor_override is ignored", "kernels/device/windows2d.py", "divisors = (divisor_override, 1) if divisor_override is not None else (0, 0)", "divisors = (0, 0)", "pool2d"),
    Mutant("average pooling: a gradient is divided by the number of taps", "kernels/device/windows2d.py", "_count(window, axis, DTYPE), 1)", "axis[2], 1)", "pool2d"),
    Mutant("the default stride is 1", "layers/pool2d.py", "stride = kernel if stride is None or", "stride = (1, 1) if stride is None or", "pool2d"),
    Mutant("the last bin ends too soon", "kernels/device/indexing.py", "return cdiv((position + 1) * size, bins)", "return (position + 1) * size // bins", "adaptive_pool2d"),
    Mutant("max pooling: taps are numbered column by column", "kernels/gather2d.py", "i * code_width + j", "j * code_width + i", "pool2d adaptive_pool2d"),
    Mutant("max pooling: every pixel of a window gets the gradient", "kernels/gather2d.py", "winner == weight_h * code_width + weight", "winner >= 0", "pool2d adaptive_pool2d"),
    Mutant("average pooling: large integers are converted to float32", "kernels/device/precision.py", "DTYPE.is_int() and value.dtype.is_floating()", "DTYPE.is_int()", "pool2d"),
    Mutant("adaptive pooling: overlapping bins share no gradient", "kernels/device/windows2d.py", "return number, number < bin_end(pixel, axis[1], axis[0]),", "return number, (number < bin_end(pixel, axis[1], axis[0])) & (i < 1),", "adaptive_pool2d"),
    Mutant("adaptive pooling: every bin is divided by the largest size", "kernels/device/windows2d.py", "return bin_end(position, axis[0], axis[1]) - bin_start(position, axis[0], axis[1])", "return max_in_bin(int(axis[0]), int(axis[1])) + 0 * position", "adaptive_pool2d"),
    Mutant("adaptive pooling: gradients are divided by the first bin's size", "kernels/device/windows2d.py", "_bin_count(number, axis, DTYPE), 1)", "_bin_count(0 * number, axis, DTYPE), 1)", "adaptive_pool2d"),
    Mutant("adaptive pooling: an index uses the row twice", "kernels/gather2d.py", "value = h * width + w", "value = h * width + h", "adaptive_pool2d"),
    Mutant("unpooling: zeros are not stored", "kernels/max_unpool2d.py", "tl.store(y + at, tl.full((FILL,), 0, tl.int32).to(y.dtype.element_ty), mask=place < out_pixels)", "pass", "max_unpool2d"),
    Mutant("unpooling: the first value is kept", "kernels/max_unpool2d.py", "lane[None, :] > lane[:, None]", "lane[None, :] < lane[:, None]", "max_unpool2d"),
    Mutant("unpooling: positions use the height as the width", "kernels/max_unpool2d.py", "_place, size[1], channels_last", "_place, size[0], channels_last", "max_unpool2d"),
    Mutant("unpooling: second derivatives are not added", "layers/max_unpool2d.py", "return ops.max_unpool2d_add(x, indices, size)", "return ops.max_unpool2d_forward(x, indices, size)", "max_unpool2d"),
    # resizing and padding
    Mutant("align_corners is ignored", "layers/upsample2d.py", "option = bool(align_corners) if", "option = False if", "upsample2d"),
    Mutant("bilinear: the weights are swapped", "kernels/upsample2d.py", "round_to((1 - down) * upper + down * lower,", "round_to(down * upper + (1 - down) * lower,", "upsample2d"),
    Mutant("bilinear: the wrong row is reused", "kernels/upsample2d.py", "if all_rows(top == at_lower, TILE):", "if all_rows(top != at_lower, TILE):", "upsample2d"),
    Mutant("bilinear: a partial row is lost", "kernels/upsample2d.py", "            acc, below = below, full_tile(0, TILE, ACCUMULATOR)\n            row += 1\n            while", "            acc, below = full_tile(0, TILE, ACCUMULATOR), below\n            row += 1\n            while", "upsample2d"),
    Mutant("bilinear: an unread row is not stored", "kernels/upsample2d.py", "while row < top:  # rows without readers, in an image that shrinks", "while row < top - 1:", "upsample2d"),
    Mutant("bilinear: a weight of 0 times an infinity is added", "kernels/upsample2d.py", "            if bottom != top:", "            if True:", "hard_inputs"),
    Mutant("bilinear: outputs count as readers of pixels they do not read", "kernels/upsample2d.py", "    low = always.index(True) if any(always) and size <= 2**12 else readers\n    return", "    return TapRange(0, readers)\n    return", "upsample2d"),
    Mutant("the last output that reads a pixel is missing", "kernels/device/indexing.py", "return max(end(pixel) - first(pixel) for pixel in range(size))", "return max(1, max(end(pixel) - first(pixel) for pixel in range(size)) - 1)", "upsample2d"),
    Mutant("the half pixel is missing", "kernels/device/indexing.py", "(position.to(scale.dtype) + shift) * scale - shift, 0.0", "position.to(scale.dtype) * scale, 0.0", "upsample2d"),
    Mutant("nearest: the last column gives no gradient", "kernels/upsample2d.py", "(reader < out_size) & (nearest_source", "(reader < out_size - 1) & (nearest_source", "upsample2d"),
    Mutant("the scale is always computed from the sizes", "kernels/device/indexing.py", "return [1 / factor for factor in factors] or [n / m", "return [n / m", "upsample2d"),
    Mutant("nearest-exact: the half pixel is missing", "kernels/upsample2d.py", "    shift = 0.5 if exact else 0.0\n    gather2d(x, y", "    shift = 0.0\n    gather2d(x, y", "upsample2d"),
    Mutant("antialiasing: the support is too small", "kernels/antialias2d.py", "    support = tl.maximum(scale, 1.0)\n    center", "    support = tl.minimum(scale, 1.0)\n    center", "upsample2d"),
    Mutant("antialiasing: weights are not normalised", "kernels/antialias2d.py", "return tl.where(total > 0, total, 1.0)", "return tl.where(total > 0, 1.0, total)", "upsample2d"),
    Mutant("antialiasing: the centre is rounded", "kernels/antialias2d.py", "tl.fma(-middle, scale, pixel.to(scale.dtype) + 0.5)", "pixel.to(scale.dtype) + 0.5 - middle * scale", "upsample2d"),
    Mutant("uint8 results are truncated instead of rounded", "kernels/device/precision.py", "value = tl.floor(value + 0.5)", "value = tl.floor(value)", "upsample2d"),
    Mutant("reflection repeats the edge", "kernels/pad2d.py", "(size - 1) - tl.abs((size - 1) - tl.abs(position - near))", "(size - 1) - tl.abs((size - 1) - tl.abs(position - near + 1) + 1)", "pad2d"),
    Mutant("circular padding is off by one", "kernels/pad2d.py", "return (position - near + size) % size", "return (position - near + size - 1) % size", "pad2d"),
    Mutant("replication repeats the second pixel", "kernels/pad2d.py", "tl.minimum(tl.maximum(position - near, 0), size - 1)", "tl.minimum(tl.maximum(position - near, 1), size - 1)", "pad2d"),
    Mutant("replication: no gradient comes from beyond the far edge", "kernels/pad2d.py", "tl.where(position == size - 1, out_size - 1, position + near)", "position + near", "pad2d"),
    # batch norm
    Mutant("eps is outside of the square root", "kernels/batchnorm2d.py", "scale = tl.rsqrt(tl.load(var + c, mask=exists).to(ACCUMULATOR) + tl.full((), eps, ACCUMULATOR))", "scale = 1 / (tl.sqrt(tl.load(var + c, mask=exists).to(ACCUMULATOR)) + tl.full((), eps, ACCUMULATOR))", "batchnorm2d"),
    Mutant("the variance is a difference of large numbers", "kernels/statistics2d.py", 'origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)', "origin = origin * 0", "batchnorm2d"),
    Mutant("the mean of an infinity is NaN", "kernels/statistics2d.py", 'origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)', "origin = origin * 1", "hard_inputs"),
    Mutant("the residual of the merged mean is lost", "kernels/statistics2d.py", 'tl.where(tl.abs(center) < float("inf"), shift, 0.0)', "tl.where(center == 0, shift, 0.0)", "batchnorm2d"),
    Mutant("statistics of splits are merged without the distance of their means", "kernels/statistics2d.py", "(tl.load(variances + at, mask=mask, other=0.0) + deviation * deviation)", "tl.load(variances + at, mask=mask, other=0.0)", "batchnorm2d"),
    Mutant("the running variance is biased", "kernels/statistics2d.py", "new_var = tl.load(var + c, mask=c < channels) * tl.full((), correction, var.dtype.element_ty)", "new_var = tl.load(var + c, mask=c < channels)", "batchnorm2d"),
    Mutant("momentum is applied to the wrong operand", "kernels/statistics2d.py", "new_mean = step * new_mean + (1 - step) * old_mean", "new_mean = (1 - step) * new_mean + step * old_mean", "batchnorm2d"),
    Mutant("running statistics are not updated", "layers/batchnorm2d.py", "if running_mean is not None and x.numel() > 0:", "if False:", "batchnorm2d"),
    Mutant("evaluation uses the batch's statistics", "layers/batchnorm2d.py", "bias, *more, eps, training)", "bias, *more, eps, True)", "batchnorm2d"),
    Mutant("evaluation uses the gradient of training", "layers/batchnorm2d.py", "w, sums if batch else None, eps) if want_x", "w, sums, eps) if want_x", "batchnorm2d"),
    Mutant("a graph shares the running statistics", "layers/batchnorm2d.py", "mean, var = running_mean.clone(), running_var.clone()", "mean, var = running_mean, running_var", "batchnorm2d"),
    Mutant("a second derivative lacks the deviation", "layers/batchnorm2d.py", "to_x = to_x - scale * s * moved", "to_x = to_x - scale * moved", "batchnorm2d"),
    Mutant("the input's gradient lacks the second sum", "kernels/batchnorm2d.py", "value -= level + (widen(values[i]).to(ACCUMULATOR) - center) * slope", "value -= level", "batchnorm2d"),
    Mutant("a process uses its own sums as the total", "layers/sync_batchnorm.py", "of_all = _sum(_gathered(sums, group)).view(sums.shape)", "of_all = sums", "sync_batchnorm"),
    Mutant("the total is divided by one process's pixels", "layers/sync_batchnorm.py", "w, of_all, eps, pixels)", "w, of_all, eps)", "sync_batchnorm"),
    Mutant("the last process's sums are missing", "layers/sync_batchnorm.py", "ops.channel_sum(parts.reshape(len(parts), -1, 1, 1))", "ops.channel_sum(parts[:-1].reshape(len(parts) - 1, -1, 1, 1))", "sync_batchnorm"),
    Mutant("every process reports the same number of pixels", "layers/sync_batchnorm.py", "mean.new_full((1,), _pixels(x))", "mean.new_full((1,), 1)", "sync_batchnorm"),
    Mutant("the running variance is biased if the GPU counts the pixels", "kernels/statistics2d.py", "correction = divide(count, count - 1)", "correction = divide(count, count)", "sync_batchnorm"),
    Mutant("a batch without pixels updates the running statistics", "kernels/statistics2d.py", "channels = tl.where(count > 0, channels, 0)", "channels = channels + 0", "sync_batchnorm"),
    Mutant("convert_sync_batchnorm returns torch's class", "layers/sync_batchnorm.py", "converted.__class__ = cls", "pass", "sync_batchnorm"),
    Mutant("evaluation waits for other processes", "layers/sync_batchnorm.py", "_others(module) if module.training else None", "_others(module)", "sync_batchnorm"),
    # the loop over rows (walk.py) of batch normalisation and channel sums
    Mutant("walk: the last row is missing", "kernels/device/walk.py", "tl.minimum(first + grid.rows_per_split, grid.rows)", "tl.minimum(first + grid.rows_per_split, grid.rows - 1)", "batchnorm2d"),
    Mutant("walk: parameters are from another channel", "kernels/device/walk.py", "return column, exists, column // grid.inner", "return column, exists, column % grid.channels", "batchnorm2d"),
    Mutant("walk: the first tile is read repeatedly", "kernels/device/walk.py", "at = row + i * TILE.rows\n", "at = row\n", "batchnorm2d"),
    Mutant("walk: idle lanes are summed", "kernels/device/walk.py", "tl.where((pixel < pixels) & (channel < grid.together), value, 0.0)", "value", "batchnorm2d"),
    Mutant("the variance lacks the differences between columns", "kernels/statistics2d.py", "count_of_tile * (mean * mean)", "0 * mean", "batchnorm2d"),
    Mutant("every row of a tile has the first row's count", "kernels/statistics2d.py", "cdiv(last - first - place // TILE.pixels, TILE.rows)", "cdiv(last - first - place * 0, TILE.rows)", "batchnorm2d"),
    Mutant("the last pixel of a plane is missing", "kernels/reduce.py", "last = tl.minimum((split + 1) * pixels_per_split, pixels)", "last = tl.minimum((split + 1) * pixels_per_split, pixels - 1)", "plane_mean"),
    Mutant("planes are padded to a power of two", "kernels/reduce.py", "tl.reshape(column * pixels + row,", "tl.reshape(column * TILE.pixels + row,", "plane_mean"),
    # relu
    Mutant("ReLU: the gradient at zero is 1", "kernels/relu.py", "tl.where(widen(value) <= 0, tl.zeros_like(upstream), upstream)", "tl.where(widen(value) < 0, tl.zeros_like(upstream), upstream)", "relu"),
    Mutant("ReLU: NaN gets no gradient", "kernels/relu.py", "tl.where(widen(value) <= 0, tl.zeros_like(upstream), upstream)", "tl.where(widen(value) > 0, upstream, tl.zeros_like(upstream))", "relu"),
    Mutant("ReLU: NaN becomes zero", "kernels/relu.py", "tl.where(widen(value) < 0, tl.zeros_like(value), value)", "tl.where(widen(value) > 0, value, tl.zeros_like(value))", "relu"),
    Mutant("a program is missing", "kernels/relu.py", "_relu_kernel, triton.cdiv(x.numel(), block), x, dy", "_relu_kernel, x.numel() // block, x, dy", "relu"),
    # tensors
    Mutant("offsets always have 32 bits", "kernels/runtime/layout.py", "return tl.int64 if settings.int64_offsets or exceeds_int32(*tensors) else tl.int32", "return tl.int32", "large_tensors"),
    Mutant("channels_last is not recognised", "kernels/runtime/layout.py", "return any(_has_channels_last_strides(t) for t in tensors)", "return False", "conv2d pool2d"),
    Mutant("channels_last is chosen only if all tensors have it", "kernels/runtime/layout.py", "return any(_has_channels_last_strides(t) for t in tensors)", "return all(_has_channels_last_strides(t) for t in tensors)", "conv2d"),
    Mutant("images of one pixel count as channels_last", "kernels/runtime/layout.py", "if tensor.stride(axis) < least or (axis == 0 and least == tensor.stride(1)):", "if tensor.stride(axis) < least:", "upsample2d"),
    Mutant("axes are merged although not contiguous", "kernels/runtime/layout.py", "if merged and strides == [merged[-1][0] * stride for stride in merged[-1][1]]:", "if merged:", "relu"),
    Mutant("memory past the end is read", "kernels/relu.py", "value = tl.load(x + offset_of(element, sizes, x_strides), mask=element < elements)", "value = tl.load(x + offset_of(element + 1, sizes, x_strides), mask=element < elements)", "relu bounds"),
    Mutant("an in-place write is not reported to autograd", "kernels/runtime/op.py", "torch.autograd.graph.increment_version(args[place])", "pass", "relu"),
]  # fmt: skip


class Outcome(NamedTuple):
    """`caught` names the test that failed, if any."""

    mutant: Mutant
    caught: str | None
    seconds: float


def mutated(mutant: Mutant) -> str:
    """The file with the mutation."""
    source = (ROOT / mutant.file).read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: the old text occurs {source.count(mutant.old)} times in {mutant.file}")
    return source.replace(mutant.old, mutant.new)


def run(mutant: Mutant) -> Outcome:
    """Run the tests on a mutant."""
    start = time.monotonic()
    with copy_of_the_tree() as copy:
        (copy / mutant.file).write_text(mutated(mutant))
        caught = first_failure(copy, *map(path_of_test, mutant.tests.split())) or first_failure(copy)
    if caught not in (None, HANGS, CRASHES) and fails_unmodified(caught):
        raise RuntimeError(f"{mutant.name}: {caught} fails in an unmodified copy too")
    return Outcome(mutant, caught, time.monotonic() - start)


@contextlib.contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "trinn"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "out"), symlinks=True)
        yield copy


@functools.cache
def fails_unmodified(test: str) -> bool:
    with copy_of_the_tree() as copy:
        return first_failure(copy, f"tests/{test}") is not None


def path_of_test(name: str) -> str:
    """The path of the file `test_<name>.py`, which is in one of the folders of tests/."""
    (path,) = ROOT.glob(f"tests/*/test_{name}.py")
    return str(path.relative_to(ROOT))


def first_failure(folder: Path, *tests: str) -> str | None:
    """The file and name of the first failure among these tests, or among all tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return HANGS
    if done.returncode == 0:
        return None
    if -done.returncode in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):  # after a write outside of a tensor
        return CRASHES
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - |$)", done.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"pytest ends with {done.returncode}:\n{done.stdout[-2000:]}")
    return failed[1]


def recorded() -> dict[str, list[Any]]:
    """The recorded row of each mutant, by name."""
    path = evidence.DOCS / "evidence" / "mutants.json"
    return {row[0]: row for row in json.loads(path.read_text())["mutants"]} if path.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run mutants whose name and file match this regular expression")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--record", action="store_true", help="record the results; rows of other mutants are kept")
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
