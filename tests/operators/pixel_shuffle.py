"""The record of layers/pixel_shuffle.py."""

import torch
import torch.nn.functional as F

import trinn.layers as tnn
from bench import shapes
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import Arguments, ManyElements, Mutant, Operator, case
from trinn.kernels import ops


def pixel_shuffle(draw: Drawing) -> DrawnCase:
    channels, height, width = draw.number(1, 3), draw.number(1, 4), draw.number(1, 4)
    factor, leading = draw.number(1, 3), tuple(draw.number(1, 3) for _ in range(draw.one_of(1, 1, 0, 2)))
    shape = (*leading, channels * factor**2, height, width)
    return DrawnCase(
        tnn.pixel_shuffle, F.pixel_shuffle, [draw.tensor(shape, draw.values_to_move())], {"upscale_factor": factor}, moves=True
    )


def pixel_unshuffle(draw: Drawing) -> DrawnCase:
    factor, leading = draw.number(1, 3), tuple(draw.number(1, 3) for _ in range(draw.one_of(1, 1, 0, 2)))
    shape = (*leading, draw.number(1, 3), draw.number(1, 4) * factor, draw.number(1, 4) * factor)
    x = draw.tensor(shape, draw.values_to_move())
    return DrawnCase(tnn.pixel_unshuffle, F.pixel_unshuffle, [x], {"downscale_factor": factor}, moves=True)


SHUFFLE = Arguments({"upscale_factor": 2}, shape=(1, 8, 10, 5))
UNSHUFFLE = Arguments({"downscale_factor": 2}, shape=(1, 2, 10, 6))
MUTANTS = (
    Mutant("pixel shuffle: rows and columns of the factor are swapped", "kernels/pixel_shuffle.py", "movedim((-3, -1), (-4, -3))", "movedim((-3, -1), (-3, -4))", "pixel_shuffle"),
    Mutant("pixel shuffle: the channel varies fastest", "kernels/pixel_shuffle.py", "x.unflatten(-3, (x.shape[-3] // factor**2, factor, factor))", "x.unflatten(-3, (factor, factor, x.shape[-3] // factor**2)).movedim(-3, -5)", "pixel_shuffle"),
    Mutant("pixel shuffle: the last rows are missing", "kernels/pixel_shuffle.py", "triton.cdiv(rows, tile.rows) * lane_tiles", "rows // tile.rows * lane_tiles", "pixel_shuffle"),
    Mutant("pixel shuffle: the last lanes are missing", "kernels/pixel_shuffle.py", "triton.cdiv(lanes, tile.lanes)", "max(1, lanes // tile.lanes)", "pixel_shuffle"),
    Mutant("pixel shuffle: memory past the end is written", "kernels/pixel_shuffle.py", "exists = (row < rows) & (lane < lanes)", "exists = (row <= rows) & (lane < lanes)", "bounds"),
    Mutant("pixel shuffle: channels_last becomes contiguous", "kernels/pixel_shuffle.py", "empty(x, shape, x.dim() == 4 and is_channels_last(x))", "empty(x, shape)", "pixel_shuffle"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "pixel_shuffle": case(nn.pixel_shuffle, (2, 12, 3, 5), upscale_factor=2),
        "pixel_unshuffle": case(nn.pixel_unshuffle, (2, 3, 6, 9), downscale_factor=3),
    },
    precision=lambda nn: {
        "pixel_shuffle": case(nn.pixel_shuffle, (3, 12, 7, 6), upscale_factor=2),
        "pixel_unshuffle": case(nn.pixel_unshuffle, (3, 5, 14, 12), downscale_factor=2),
    },
    programs=lambda nn: {
        "pixel_shuffle": case(nn.pixel_shuffle, (4, 16, 64, 64), upscale_factor=2, programs=8),
        "pixel_unshuffle": case(nn.pixel_unshuffle, (4, 4, 128, 128), downscale_factor=2, programs=8),
    },
    draws=(pixel_shuffle, pixel_unshuffle),
    functions={"pixel_shuffle": SHUFFLE, "pixel_unshuffle": UNSHUFFLE},
    modules={"PixelShuffle": SHUFFLE, "PixelUnshuffle": UNSHUFFLE},
    patched={
        "F.pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
        "F.pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 3),
        "torch.pixel_shuffle": lambda x: torch.pixel_shuffle(input=x, upscale_factor=2),
    },
    passes={"pixel shuffle": shapes.layer(lambda nn: nn.PixelShuffle(2), (2, 12, 3, 5))},
    many_passes={"pixel shuffle": shapes.layer(lambda nn: nn.PixelShuffle(2), (2**20, 8, 32, 32))},
    last_image={"pixel_unshuffle": lambda x: tnn.pixel_unshuffle(x, 4)},
    many_elements={
        "pixel_shuffle": ManyElements(lambda x: ops.pixel_shuffle(x, 2), (4, 4, 4), torch.int8),
        "pixel_unshuffle": ManyElements(lambda x: ops.pixel_unshuffle(x, 2), (1, 8, 8), torch.int8),
    },
    mutants=MUTANTS,
)
