"""The record of layers/adaptive_pool2d.py. Its kernels are those of pool2d."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F

import trinn.layers as tnn
from bench import shapes
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, LARGER, MEDIUM, Arguments, ManyElements, Mutant, Operator, OperatorCase, case
from trinn.kernels import ops


def both(nn: Any, shape: tuple[int, ...], size: Any, programs: int = 0) -> Mapping[str, OperatorCase]:
    names = "adaptive_avg_pool2d", "adaptive_max_pool2d"
    return {name: case(getattr(nn, name), shape, output_size=size, programs=programs) for name in names}


def output_size(draw: Drawing) -> Any:
    return draw.one_of(draw.number(1, 10), (draw.number(1, 10), draw.number(1, 10)), (None, draw.number(1, 10)), (3, None))


def adaptive_avg_pool2d(draw: Drawing) -> DrawnCase:
    values = draw.values_to_average()
    x, options = draw.image(values), {"output_size": output_size(draw)}
    return DrawnCase(tnn.adaptive_avg_pool2d, F.adaptive_avg_pool2d, [x], options, subnormal=values == "subnormal")


def adaptive_max_pool2d(draw: Drawing) -> DrawnCase:
    options = {"output_size": output_size(draw), "return_indices": draw.one_of(False, True)}
    return DrawnCase(tnn.adaptive_max_pool2d, F.adaptive_max_pool2d, [draw.image(draw.values_to_move())], options, moves=True)


MUTANTS = (
    Mutant("the last bin ends too soon", "kernels/device/indexing.py", "return cdiv((position + 1) * size, bins)", "return (position + 1) * size // bins", "adaptive_pool2d"),
    Mutant("adaptive pooling: overlapping bins share no gradient", "kernels/device/windows2d.py", "return number, number < bin_end(pixel, axis[1], axis[0]),", "return number, (number < bin_end(pixel, axis[1], axis[0])) & (i < 1),", "adaptive_pool2d"),
    Mutant("adaptive pooling: every bin is divided by the largest size", "kernels/device/windows2d.py", "return bin_end(position, axis[0], axis[1]) - bin_start(position, axis[0], axis[1])", "return max_in_bin(int(axis[0]), int(axis[1])) + 0 * position", "adaptive_pool2d"),
    Mutant("adaptive pooling: gradients are divided by the first bin's size", "kernels/device/windows2d.py", "_bin_count(number, axis, DTYPE), 1)", "_bin_count(0 * number, axis, DTYPE), 1)", "adaptive_pool2d"),
    Mutant("adaptive pooling: an index uses the row twice", "kernels/gather2d.py", "value = h * width + w", "value = h * width + h", "adaptive_pool2d"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "adaptive_avg_pool2d": case(nn.adaptive_avg_pool2d, IMAGE, output_size=(3, 4)),
        "adaptive_max_pool2d": case(nn.adaptive_max_pool2d, IMAGE, output_size=(3, 8), return_indices=True),
    },
    dynamic=lambda nn: {
        "AdaptiveAvgPool2d": case(nn.AdaptiveAvgPool2d((None, 3)), IMAGE),
        "AdaptiveMaxPool2d": case(nn.AdaptiveMaxPool2d((2, None)), IMAGE),
    },
    precision=lambda nn: both(nn, LARGER, (5, 6)),
    programs=lambda nn: both(nn, MEDIUM, 6, programs=3),
    draws=(adaptive_avg_pool2d, adaptive_max_pool2d),
    functions={"adaptive_avg_pool2d": Arguments({"output_size": 2}), "adaptive_max_pool2d": Arguments({"output_size": 2})},
    modules={"AdaptiveAvgPool2d": Arguments({"output_size": 2}), "AdaptiveMaxPool2d": Arguments({"output_size": 2})},
    patched={
        "F.adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (4, None)),
        "F.adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 4),
        "F.adaptive_max_pool2d, indices": lambda x: F.adaptive_max_pool2d(x, 4, return_indices=True),
        "F.adaptive_max_pool2d_with_indices": lambda x: F.adaptive_max_pool2d_with_indices(x, (4, 3)),
    },
    passes={
        "adaptive pool": shapes.adaptive_pool((2, 3, 8, 8), (3, 5)),
        "one bin": shapes.adaptive_pool((64, 5, 7, 7), (1, 1)),
        "one bin, large": shapes.adaptive_pool((2, 5, 280, 280), (1, 1)),
    },
    many_passes={
        "adaptive pool": shapes.adaptive_pool((2**20, 8, 32, 32), (3, 5)),
        "one bin": shapes.adaptive_pool((2**24, 8, 7, 7), (1, 1)),
        "one bin, large": shapes.adaptive_pool((2**5, 8, 2**12, 2**12), (1, 1)),
    },
    last_image={
        "adaptive_avg_pool2d": lambda x: tnn.adaptive_avg_pool2d(x, (3, 5)),
        "adaptive_max_pool2d": lambda x: tnn.adaptive_max_pool2d(x, (3, 5)),
    },
    many_elements={
        "adaptive_avg_pool2d": ManyElements(lambda x: ops.avg_pool2d_forward(x, (3, 5), (), (), (), True, None), (2, 8, 8)),
        "adaptive_max_pool2d": ManyElements(lambda x: ops.max_pool2d_forward(x, (3, 5), (), (), (), ())[0], (2, 8, 8)),
    },
    mutants=MUTANTS,
)
