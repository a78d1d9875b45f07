"""The record of layers/batchnorm2d.py."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from bench import shapes
from tests.support.check import DEVICE, randn
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, LARGER, MEDIUM, Arguments, ManyElements, Mutant, Operator, OperatorCase, case
from trinn.kernels import ops


def of_statistics(nn: Any, training: bool, **fields: Any) -> OperatorCase:
    def function(x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return nn.batch_norm(x, mean.clone(), var.clone(), w, b, training)

    return case(function, IMAGE, (5,), (5,), others=lambda: (randn(5), randn(5).abs() + 0.5), **fields)


def of_fixed_statistics(nn: Any, shape: tuple[int, ...], training: bool, programs: int = 0) -> OperatorCase:
    """The running statistics have the dtype of the weights."""
    channels = shape[1:2]

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        mean, var = (torch.linspace(*ends, *channels).to(w) for ends in ((-1, 1), (0.5, 2)))
        return nn.batch_norm(x, mean, var, w, b, training)

    return case(function, shape, channels, channels, programs=programs)


def batch_norm(draw: Drawing) -> DrawnCase:
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
    return DrawnCase(through(tnn), through(F), [x, *vectors], {}, max(1 / eps, x.numel() / channels))


MUTANTS = (
    Mutant("the residual is not added", "kernels/batchnorm2d.py", "value += widen(residuals[i]).to(ACCUMULATOR)", "pass", "fused"),
    Mutant("the activation has no gradient", "kernels/batchnorm2d.py", "narrow(activation_gradient(gradient, kept, slope, ACTIVATION), dz", "narrow(gradient, dz", "fused"),
    Mutant("the activation's input is computed without the shift", "kernels/batchnorm2d.py", "kept = deviation * scale + shift", "kept = deviation * scale", "fused"),
    Mutant("the activation's input is computed without the residual", "kernels/batchnorm2d.py", "kept += widen(residuals[i])", "kept += 0 * widen(residuals[i])", "fused"),
    Mutant("positive inputs count in the gradient of PReLU's weight", "kernels/batchnorm2d.py", "below += tl.where(kept > 0, 0.0, gradient * kept)", "below += gradient * kept", "fused"),
    Mutant("fused evaluation ignores the convolution's bias", "kernels/batchnorm2d.py", "offset += tl.load(bias + c,", "offset += 0 * tl.load(bias + c,", "fused"),
    Mutant("the residual has no gradient", "layers/batchnorm2d.py", "db if need_b else None, dz if need_residual else None", "db if need_b else None", "fused"),
    Mutant("eps is outside of the square root", "kernels/batchnorm2d.py", "scale = tl.rsqrt(tl.load(var + c, mask=exists).to(ACCUMULATOR) + tl.full((), eps, ACCUMULATOR))", "scale = 1 / (tl.sqrt(tl.load(var + c, mask=exists).to(ACCUMULATOR)) + tl.full((), eps, ACCUMULATOR))", "batchnorm2d"),
    Mutant("the variance is a difference of large numbers", "kernels/statistics2d.py", 'origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)', "origin = origin * 0", "batchnorm2d"),
    Mutant("the mean of an infinity is NaN", "kernels/statistics2d.py", 'origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)', "origin = origin * 1", "hard_inputs"),
    Mutant("the residual of the merged mean is lost", "kernels/statistics2d.py", 'tl.where(tl.abs(center) < float("inf"), shift, 0.0)', "tl.where(center == 0, shift, 0.0)", "batchnorm2d"),
    Mutant("statistics of splits are merged without the distance of their means", "kernels/statistics2d.py", "(tl.load(variances + at, mask=mask, other=0.0) + deviation * deviation)", "tl.load(variances + at, mask=mask, other=0.0)", "batchnorm2d"),
    Mutant("the running variance is biased", "kernels/statistics2d.py", "new_var = tl.load(var + c, mask=c < channels) * tl.full((), correction, var.dtype.element_ty)", "new_var = tl.load(var + c, mask=c < channels)", "batchnorm2d"),
    Mutant("momentum is applied to the wrong operand", "kernels/statistics2d.py", "new_mean = step * new_mean + (1 - step) * old_mean", "new_mean = (1 - step) * new_mean + step * old_mean", "batchnorm2d"),
    Mutant("running statistics are not updated", "layers/batchnorm2d.py", "if running_mean is not None and x.numel() > 0:", "if False:", "batchnorm2d"),
    Mutant("evaluation uses the batch's statistics", "layers/batchnorm2d.py", "weight, bias, residual, eps, training)", "weight, bias, residual, eps, True)", "batchnorm2d"),
    Mutant("evaluation uses the gradient of training", "layers/batchnorm2d.py", "w, sums if batch else None, eps) if want_x", "w, sums, eps) if want_x", "batchnorm2d"),
    Mutant("backward reads the output of an activation in training too", "layers/batchnorm2d.py", "keeps_output(activation) and (residual is not None or not training)", "keeps_output(activation)", "fused"),
    Mutant("a graph shares the running statistics", "layers/batchnorm2d.py", "mean, var = running_mean.clone(), running_var.clone()", "mean, var = running_mean, running_var", "batchnorm2d"),
    Mutant("a second derivative lacks the deviation", "layers/batchnorm2d.py", "to_x = to_x - scale * s * moved", "to_x = to_x - scale * moved", "batchnorm2d"),
    Mutant("the input's gradient lacks the second sum", "kernels/batchnorm2d.py", "value -= level + (widen(values[i]).to(ACCUMULATOR) - center) * slope", "value -= level", "batchnorm2d"),
    Mutant("the running variance is biased if the GPU counts the pixels", "kernels/statistics2d.py", "correction = divide(count, count - 1)", "correction = divide(count, count)", "sync_batchnorm"),
    Mutant("a batch without pixels updates the running statistics", "kernels/statistics2d.py", "channels = tl.where(count > 0, channels, 0)", "channels = channels + 0", "sync_batchnorm"),
    Mutant("walk: the last row is missing", "kernels/device/walk.py", "tl.minimum(first + grid.rows_per_split, grid.rows)", "tl.minimum(first + grid.rows_per_split, grid.rows - 1)", "batchnorm2d"),
    Mutant("walk: parameters are from another channel", "kernels/device/walk.py", "return column, exists, column // grid.inner", "return column, exists, column % grid.channels", "batchnorm2d"),
    Mutant("walk: the first tile is read repeatedly", "kernels/device/walk.py", "at = row + i * TILE.rows\n", "at = row\n", "batchnorm2d"),
    Mutant("walk: idle lanes are summed", "kernels/device/walk.py", "tl.where((pixel < pixels) & (channel < grid.together), value, 0.0)", "value", "batchnorm2d"),
    Mutant("the variance lacks the differences between columns", "kernels/statistics2d.py", "count_of_tile * (mean * mean)", "0 * mean", "batchnorm2d"),
    Mutant("every row of a tile has the first row's count", "kernels/statistics2d.py", "cdiv(last - first - place // TILE.pixels, TILE.rows)", "cdiv(last - first - place * 0, TILE.rows)", "batchnorm2d"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "batch_norm, training": of_statistics(nn, True, per_image=False, writes=True, fake_cuda=False, saved=(0, 1)),
        "batch_norm": of_statistics(nn, False),
    },
    dynamic=lambda nn: {
        f"batch_norm, {len(shape)} axes": case(
            lambda x, w, b: nn.batch_norm(x, None, None, w, b, training=True), shape, (5,), (5,)
        )
        for shape in ((4, 5), (3, 5, 6), (2, 5, 2, 3, 4))
    },
    precision=lambda nn: {
        "batch_norm, training": of_fixed_statistics(nn, LARGER, True),
        "batch_norm, evaluation": of_fixed_statistics(nn, LARGER, False),
    },
    programs=lambda nn: {"batch_norm": of_fixed_statistics(nn, MEDIUM, True, programs=5)},
    draws=(batch_norm,),
    functions={
        "batch_norm": Arguments(
            tensors={name: lambda: torch.ones(2, device=DEVICE) for name in ("running_mean", "running_var", "weight", "bias")}
        )
    },
    modules={
        "BatchNorm1d": Arguments({"num_features": 2}, shape=(1, 2, 10)),
        "BatchNorm2d": Arguments({"num_features": 2}),
        "LazyBatchNorm1d": Arguments(shape=(1, 2, 10)),
        "LazyBatchNorm2d": Arguments(),
    },
    patched={"F.batch_norm": lambda x: F.batch_norm(x, None, None, x[0, :, 0, 0], training=True)},
    passes={"batch_norm": shapes.batchnorm(64, 5, 28, 28)},
    many_passes={
        "batch_norm": shapes.batchnorm(2**20, 8, 32, 32),
        "batch_norm, many channels": shapes.batchnorm(2, 2**29, 2, 2),
    },
    last_image={"batch_norm": lambda x: tnn.batch_norm(x, *x.detach()[-1, :2, 0, :2].square())},
    many_elements={
        "batch_norm": ManyElements(
            lambda x: ops.batchnorm2d_forward(x, torch.ones(2), torch.ones(2), None, None, None, None, "", 1e-5, False),
            (2, 8, 8),
        ),
        "batch_norm sums": ManyElements(
            lambda x: ops.batchnorm2d_sums(x, x, torch.zeros(2), torch.ones(2), 0.0)[None], (2, 8, 8)
        ),
    },
    small_multiplications={
        "_statistics2d_kernel": "the lanes of a tile",
        "_statistics2d_merge_kernel": "chunks of some thousand elements",
        "_batchnorm2d_sums_kernel": "the lanes of a tile",
    },
    mutants=MUTANTS,
)
