"""The record of layers/pool2d.py: max and average pooling."""

from typing import Any

import torch
import torch.nn.functional as F

import trinn.layers as tnn
from bench import shapes
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, LARGER, MEDIUM, TAP_NUMBER, Arguments, ManyElements, Mutant, Operator, Samples, case
from trinn.kernels import ops

WINDOW = {"kernel_size": 3, "stride": 2, "padding": 1}
PAIRS = (3, 3), (2, 2), (1, 1)


def max_pool2d(draw: Drawing) -> DrawnCase:
    options: dict[str, Any] = {"kernel_size": draw.pair(1, 4), "padding": draw.pair(0, 2), "dilation": draw.pair(1, 3)}
    options |= {"stride": draw.one_of(None, draw.pair(1, 4)), "ceil_mode": draw.one_of(False, True)}
    options["return_indices"] = draw.one_of(False, True)
    x = draw.image(draw.values_to_move())
    # With dilation a window may be outside the image; torch then writes its gradient outside of the tensor.
    draw.assume(not any(misses(n, options, axis) for axis, n in enumerate(x.shape[-2:])))
    return DrawnCase(tnn.max_pool2d, F.max_pool2d, [x], options, moves=True)


def misses(size: int, options: dict[str, Any], axis: int) -> bool:
    """Whether some window of a pooling reads no pixel along an axis of that size."""
    stride = options["stride"] if options["stride"] is not None else options["kernel_size"]
    pairs = (options["kernel_size"], stride, options["padding"], options["dilation"])
    taps, step, padding, dilation = (value if isinstance(value, int) else value[axis] for value in pairs)
    starts = range(-padding, size + padding, step)
    return any(all(not 0 <= start + tap * dilation < size for tap in range(taps)) for start in starts)


def avg_pool2d(draw: Drawing) -> DrawnCase:
    options: dict[str, Any] = {"kernel_size": draw.pair(1, 4), "padding": draw.pair(0, 2)}
    options |= {"stride": draw.one_of(None, draw.pair(1, 4)), "ceil_mode": draw.one_of(False, True)}
    options |= {"count_include_pad": draw.one_of(False, True), "divisor_override": draw.one_of(None, None, 1, 3, -2, 0)}
    values = draw.values_to_average()
    return DrawnCase(tnn.avg_pool2d, F.avg_pool2d, [draw.image(values)], options, subnormal=values == "subnormal")


MUTANTS = (
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
    Mutant("max pooling: taps are numbered column by column", "kernels/gather2d.py", "i * code_width + j", "j * code_width + i", "pool2d adaptive_pool2d"),
    Mutant("max pooling: every pixel of a window gets the gradient", "kernels/gather2d.py", "winner == weight_h * code_width + weight", "winner >= 0", "pool2d adaptive_pool2d"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "max_pool2d": case(nn.max_pool2d, IMAGE, **WINDOW),
        "max_pool2d, indices": case(
            nn.max_pool2d, IMAGE, kernel_size=2, stride=1, padding=1, dilation=2, ceil_mode=True, return_indices=True
        ),
        "avg_pool2d": case(nn.avg_pool2d, IMAGE, **WINDOW, ceil_mode=True, count_include_pad=False),
    },
    precision=lambda nn: {
        "max_pool2d": case(nn.max_pool2d, LARGER, **WINDOW),
        "avg_pool2d": case(nn.avg_pool2d, LARGER, **WINDOW),
    },
    programs=lambda nn: {
        "max_pool2d": case(nn.max_pool2d, MEDIUM, **WINDOW, programs=2),
        "avg_pool2d": case(nn.avg_pool2d, MEDIUM, kernel_size=2, programs=3),
    },
    draws=(max_pool2d, avg_pool2d),
    functions={"avg_pool2d": Arguments({"kernel_size": 2}), "max_pool2d": Arguments({"kernel_size": 2})},
    modules={"AvgPool2d": Arguments({"kernel_size": 2}), "MaxPool2d": Arguments({"kernel_size": 2})},
    samples={"max_pool2d": Samples(shards=24)},
    patched={
        "F.max_pool2d": lambda x: F.max_pool2d(x, 3, 2, padding=1),
        "F.max_pool2d, indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
        "F.max_pool2d_with_indices": lambda x: F.max_pool2d_with_indices(x, (2, 2)),
        "torch.max_pool2d": lambda x: torch.max_pool2d(x, (2, 2), stride=1),
        "F.avg_pool2d": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
        "nn.MaxPool2d": lambda x: torch.nn.MaxPool2d(2, return_indices=True)(x),
    },
    passes={"pool": shapes.pool((2, 3, 8, 8), 3, 2, 1)},
    many_passes={"pool": shapes.pool((2**20, 8, 32, 32), 3, 2, 1)},
    last_image={"max_pool2d": lambda x: tnn.max_pool2d(x, 3, 2, 1), "avg_pool2d": lambda x: tnn.avg_pool2d(x, 2)},
    many_elements={
        "max_pool2d": ManyElements(lambda x: ops.max_pool2d_forward(x, (4, 4), *PAIRS, (1, 1))[0], (2, 8, 8), torch.int8),
        "avg_pool2d": ManyElements(lambda x: ops.avg_pool2d_forward(x, (4, 4), *PAIRS, True, None), (2, 8, 8)),
        "avg_pool2d backward": ManyElements(
            lambda x: ops.avg_pool2d_backward(x, (15, 15), *PAIRS, True, None, False), (2, 8, 8)
        ),
    },
    small_multiplications={"_max_pool2d_kernel": TAP_NUMBER},
    mutants=MUTANTS,
)
