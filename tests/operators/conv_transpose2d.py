"""The record of layers/conv_transpose2d.py. Its kernels are those of conv2d."""

import torch.nn.functional as F

import trinn.layers as tnn
from tests.operators.conv2d import is_narrow, is_not_finite, tma_case, torchs_of, wgrad_condition
from tests.support.check import randn
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, Arguments, Mutant, Operator, case


def conv_transpose2d(draw: Drawing) -> DrawnCase:
    groups, channels, filters = draw.number(1, 3), draw.number(1, 3), draw.number(1, 3)
    x = draw.image(draw.values_to_sum(), groups * channels)
    w = draw.tensor((groups * channels, filters, draw.number(1, 4), draw.number(1, 4)), draw.values_to_sum())
    bias = draw.tensor((groups * filters,)) if draw.number(0, 1) else None
    names = {"stride": (1, 3), "padding": (0, 3), "output_padding": (0, 2), "dilation": (1, 3)}
    options = {name: draw.pair(*bounds) for name, bounds in names.items()}
    more_nan = ("output 0",) * is_not_finite(w)
    return DrawnCase(tnn.conv_transpose2d, F.conv_transpose2d, [x, w, bias], options | {"groups": groups}, more_nan=more_nan)


def conv_transpose2d_tma(draw: Drawing) -> DrawnCase:
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
    return DrawnCase(
        tnn.conv_transpose2d, torchs, [x, w, bias], options, wgrad_condition(x, 0), more_nan=more_nan, fewer_nan=fewer_nan
    )


MUTANTS = (
    Mutant("output_padding is ignored", "layers/window.py", "- 2 * p + extra for", "- 2 * p for", "conv_transpose2d"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "conv_transpose2d": case(
            nn.conv_transpose2d, IMAGE, (5, 3, 3, 3), (3,), stride=2, padding=1, output_padding=1, saved=(0, 1)
        ),
        "conv_transpose2d, depthwise": case(
            nn.conv_transpose2d, IMAGE, (5, 1, 2, 2), (5,), stride=3, groups=5, float64_strides=False
        ),
    },
    tma=lambda nn: {"conv_transpose2d": case(nn.conv_transpose2d, (2, 16, 2, 3), (16, 16, 4, 4), (16,), stride=2, padding=1)},
    precision=lambda nn: {
        "conv_transpose2d": case(nn.conv_transpose2d, (4, 64, 9, 8), (64, 32, 4, 4), (32,), stride=2, padding=1)
    },
    programs=lambda nn: {
        "conv_transpose2d": case(nn.conv_transpose2d, (4, 16, 32, 32), (16, 8, 4, 4), (8,), stride=2, padding=1, programs=10)
    },
    draws=(conv_transpose2d, conv_transpose2d_tma),
    functions={"conv_transpose2d": Arguments(tensors={"weight": lambda: randn(2, 3, 2, 2), "bias": lambda: randn(3)})},
    modules={
        "ConvTranspose2d": Arguments({"in_channels": 2, "out_channels": 3, "kernel_size": 2}),
        "LazyConvTranspose2d": Arguments({"out_channels": 3, "kernel_size": 2}),
    },
    patched={"F.conv_transpose2d": lambda x: F.conv_transpose2d(x, x[0, :, None, :3, :3], stride=2, output_padding=1)},
    last_image={"conv_transpose2d": lambda x: tnn.conv_transpose2d(x, x.new_ones(2, 1, 2, 2))},
    mutants=MUTANTS,
)
