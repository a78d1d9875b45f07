"""The record of layers/upsample2d.py."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from bench import shapes
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, LARGER, MEDIUM, Arguments, ManyElements, Mutant, Operator, OperatorCase, Samples, case
from trinn.kernels import ops


def dynamic(nn: Any) -> Mapping[str, OperatorCase]:
    """All ways to specify a size."""
    bilinear = {"mode": "bilinear"}
    forms: dict[str, dict[str, Any]] = {
        "size": {"size": (4, 9), **bilinear},
        "size, corners": {"size": (4, 9), "align_corners": True, **bilinear},
        "size, nearest": {"size": (4, 9)},
        "size, area": {"size": (4, 9), "mode": "area"},
        "factor": {"scale_factor": 2, **bilinear},
        "factor, corners": {"scale_factor": 2.0, "align_corners": True, **bilinear},
        "factor, nearest": {"scale_factor": 2.0},
        "factor, nearest-exact": {"scale_factor": 3, "mode": "nearest-exact"},
        "fraction": {"scale_factor": (1.7, 0.6), **bilinear},
        "fraction, nearest": {"scale_factor": (0.6, 2.0)},
        "fraction, area": {"scale_factor": 0.5, "mode": "area"},
        "fraction, antialias": {"scale_factor": 0.5, "antialias": True, **bilinear},
        "factor, recomputed": {"scale_factor": 1.7, "recompute_scale_factor": True, **bilinear},
    }
    found = {f"interpolate, {name}": case(nn.interpolate, IMAGE, **options) for name, options in forms.items()}
    for name, options in {"bilinear": bilinear, "nearest": {}, "antialias": {"antialias": True, **bilinear}}.items():
        found[f"interpolate, to another's size, {name}"] = case(
            lambda a, b, options=options: nn.interpolate(a, size=b.shape[-2:], **options) + b, IMAGE, (2, 5, 9, 13)
        )
    modules = {
        "Upsample, factor": nn.Upsample(scale_factor=2, mode="bilinear"),
        "Upsample, fraction": nn.Upsample(scale_factor=(1.5, 2.5)),
        "Upsample, size": nn.Upsample(size=(9, 8), mode="bilinear", align_corners=True),
        "UpsamplingBilinear2d": nn.UpsamplingBilinear2d(scale_factor=2),
        "UpsamplingNearest2d": nn.UpsamplingNearest2d(scale_factor=2),
    }
    return found | {name: case(module, IMAGE) for name, module in modules.items()}


def resized(draw: Drawing) -> dict[str, Any]:
    """Options of a resizing: a size or a factor."""
    if draw.number(0, 1):
        return {"size": draw.one_of(draw.number(1, 12), (draw.number(1, 12), draw.number(1, 12)))}
    factor = draw.real(0.25, 3.5) if draw.number(0, 1) else (draw.real(0.25, 3.5), draw.real(0.25, 3.5))
    return {"scale_factor": factor, "recompute_scale_factor": draw.one_of(None, False, True)}


def of_four_axes(x: Tensor) -> Tensor:
    """Add an axis to an unbatched image: trinn resizes four axes only (docs/differences.md, interpolate)."""
    return x if x.dim() == 4 else x.unsqueeze(0)


def bilinear(draw: Drawing) -> DrawnCase:
    options = resized(draw) | {"mode": "bilinear", "align_corners": draw.one_of(None, False, True)}
    values = draw.values_to_average()
    if values == "infinities":  # 0 * inf is NaN, and the rounding of a coordinate decides if a weight is 0
        values = "NaN"
    x = of_four_axes(draw.image(values))
    return DrawnCase(tnn.interpolate, F.interpolate, [x], options, subnormal=values == "subnormal")


def antialias(draw: Drawing) -> DrawnCase:
    """Two columns or more, in float32 and float64: torch is wrong for one column, and has other dtypes on GPUs only."""
    draw.dtype = draw.one_of(torch.float32, torch.float64)
    options: dict[str, Any] = {"size": (draw.number(1, 12), draw.number(2, 12)), "mode": "bilinear", "antialias": True}
    options["align_corners"] = draw.one_of(False, True)
    values = draw.one_of("normal", "ties", "zeros", "NaN", "subnormal")
    x = of_four_axes(draw.image(values))
    return DrawnCase(tnn.interpolate, F.interpolate, [x], options, subnormal=values == "subnormal")


def nearest(draw: Drawing) -> DrawnCase:
    mode = draw.one_of("nearest", "nearest-exact", "area")
    x = of_four_axes(draw.image(draw.values_to_sum() if mode == "area" else draw.values_to_move()))
    options = resized(draw) | {"mode": mode}
    if mode == "area" and "scale_factor" in options:  # docs/differences.md, adaptive_avg_pool2d, "No bins"
        factor = options["scale_factor"]
        draw.assume(
            all(n * f >= 1 for n, f in zip(x.shape[2:], factor if isinstance(factor, tuple) else (factor, factor), strict=True))
        )
    return DrawnCase(tnn.interpolate, F.interpolate, [x], options, moves=mode != "area")


def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    return tnn.interpolate(input, size, scale_factor, "bilinear", align_corners=True)


def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    return tnn.interpolate(input, size, scale_factor, "nearest")


# torch resizes (N, C, W), (N, C, H, W) and (N, C, D, H, W); trinn takes (N, C, H, W) only.
SAMPLES = {
    f"interpolate {mode}": Samples(variant=mode, axes=4) for mode in ("nearest", "nearest-exact", "bilinear", "area")
} | {
    "upsample_bilinear": Samples(upsample_bilinear, axes=4),
    "upsample_nearest": Samples(upsample_nearest, axes=4),
}
MUTANTS = (
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
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "interpolate, bilinear": case(nn.interpolate, IMAGE, size=(11, 4), mode="bilinear"),
        "interpolate, bilinear, corners": case(nn.interpolate, IMAGE, scale_factor=1.7, mode="bilinear", align_corners=True),
        "interpolate, antialias": case(nn.interpolate, IMAGE, size=(3, 4), mode="bilinear", antialias=True),
        "interpolate, nearest": case(nn.interpolate, IMAGE, scale_factor=2.5, mode="nearest"),
        "interpolate, nearest-exact": case(nn.interpolate, IMAGE, size=(4, 9), mode="nearest-exact"),
    },
    dynamic=dynamic,
    precision=lambda nn: {
        "interpolate, bilinear": case(nn.interpolate, LARGER, size=(29, 20), mode="bilinear"),
        "interpolate, corners": case(nn.interpolate, LARGER, size=(29, 20), mode="bilinear", align_corners=True),
        "interpolate, antialias": case(nn.interpolate, LARGER, size=(5, 6), mode="bilinear", antialias=True),
        "interpolate, nearest": case(nn.interpolate, LARGER, size=(29, 20), mode="nearest"),
    },
    programs=lambda nn: {
        "interpolate, bilinear": case(nn.interpolate, (4, 16, 32, 32), scale_factor=2, mode="bilinear", programs=3),
        "interpolate, antialias": case(nn.interpolate, MEDIUM, size=(24, 20), mode="bilinear", antialias=True, programs=3),
        "interpolate, nearest": case(nn.interpolate, (4, 16, 32, 32), scale_factor=2, programs=3),
    },
    draws=(bilinear, antialias, nearest),
    functions={"interpolate": Arguments({"scale_factor": 2})},
    modules={name: Arguments({"scale_factor": 2}) for name in ("Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d")},
    samples=SAMPLES,
    patched={
        "F.interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "F.upsample": lambda x: F.upsample(x, scale_factor=2),
    },
    passes={"resize": shapes.resize((2, 3, 8, 8), (3, 5))},
    many_passes={"resize": shapes.resize((2**20, 8, 32, 32), (12, 50))},
    last_image={
        "bilinear": lambda x: tnn.interpolate(x, size=(12, 20), mode="bilinear"),
        "antialias": lambda x: tnn.interpolate(x, size=(12, 8), mode="bilinear", antialias=True),
        "nearest": lambda x: tnn.interpolate(x, size=(12, 20), mode="nearest"),
    },
    many_elements={
        "bilinear": ManyElements(lambda x: ops.bilinear2d_forward(x, (3, 12), (), False), (2, 8, 8)),
        "nearest": ManyElements(lambda x: ops.nearest2d_forward(x, (3, 12), (), False), (2, 8, 8), torch.int8),
        "antialias": ManyElements(lambda x: ops.antialias2d_forward(x, (3, 5), (), False), (2, 8, 8)),
    },
    mutants=MUTANTS,
)
