"""Rows 51-69: batch normalisation."""

from typing import Any

import numpy
import torch
import torch.nn.functional as F

import trinn.layers as tnn
from tests.operators.hard_inputs import INF, NAN, filled, grads, holds, integers, large_tiles, like_torch, refusal
from tests.support.check import LEAST_EPS, check, randn
from trinn.kernels import ops
from trinn.kernels.runtime.interpreter import INTERPRETED

X = (3, 4, 5, 6)


def normalised(nn: Any, x: torch.Tensor, *vectors: Any, training: bool = True, **options: Any) -> list[torch.Tensor]:
    """Output, gradients of x, weight and bias, and the updated running statistics."""
    mean, var, w, b = (*vectors, None, None, None, None)[:4]
    kept = [v.clone() if v is not None else None for v in (mean, var)]
    results = grads(lambda x, w, b: nn.batch_norm(x, *kept, w, b, training, **options), x, w, b)
    return results + [v for v in kept if v is not None]


def vectors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Running mean and variance, weight and bias of four channels."""
    mean, w, b = (integers(4, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    return mean, torch.tensor([0.5, 1, 2, 4], dtype=dtype), w, b


@like_torch(51, "one value per channel: an error in training, and in evaluation without statistics")
def _(nn: Any) -> Any:
    x = torch.ones(1, 4, 1, 1)
    untracked = nn.BatchNorm2d(4, track_running_stats=False)
    words = "Expected more than 1 value per channel when training"
    return (
        refusal(nn.batch_norm, x, None, None, training=True, words=words),
        refusal(nn.BatchNorm2d(4), x, words=words),
        refusal(untracked.eval(), x, words=words),
        nn.BatchNorm2d(4).eval()(x).detach().isfinite(),
    )


@like_torch(52, "no images in training: the statistics stay, num_batches_tracked grows")
def _(nn: Any) -> Any:
    module = filled(nn.BatchNorm2d(4))
    x = torch.ones(0, 4, 5, 6, requires_grad=True)
    y = module(x)
    gradients = torch.autograd.grad(y.sum(), [x, *module.parameters()])
    return y.detach(), list(gradients), dict(module.state_dict())


@like_torch(53, "momentum None is the cumulative average; 0, negative and above 1 are allowed", ulps=2)
def _(nn: Any) -> Any:
    means = []
    for momentum in (None, 0.0, -0.5, 1.0, 1.5, numpy.float32(0.5)):
        module = nn.BatchNorm2d(1, momentum=momentum)
        for mean in (1.0, 2.0, 6.0):
            module(torch.tensor([mean - 1, mean + 1]).reshape(2, 1, 1, 1))
            means += [module.running_mean.clone(), module.running_var.clone()]
    return means


@like_torch(54, "running_var divides by n - 1, the output by n", ulps=2)
def _(nn: Any) -> Any:
    x = torch.tensor([[-1.0], [1.0]]).reshape(2, 1, 1, 1)
    y, dx, *statistics = normalised(nn, x, torch.zeros(1), torch.ones(1), momentum=1.0)
    return y, dx if INTERPRETED else 1 + dx, statistics  # dx is 0, up to the rounding error of 1 - 1


@holds(55, "a constant channel becomes exactly its bias, with finite gradients")
def _() -> None:
    x = torch.full(X, 3.7)
    x[:, 1] = -1e6
    b = torch.tensor([1.0, 2, 3, 4])
    y, dx, dw, db = grads(lambda x, w, b: tnn.batch_norm(x, None, None, w, b, True), x, torch.ones(4), b)
    assert (y == b[:, None, None]).all() and dx.isfinite().all() and not dw.any() and db.isfinite().all()


@like_torch(56, "eps of 0 in evaluation", ulps=4)
def _(nn: Any) -> Any:
    return nn.batch_norm(integers(*X), *vectors()[:2], eps=LEAST_EPS)


@holds(56, "eps of 0 in training, and below 0: an error, as in torch from 2.13 on")
def _() -> None:
    x, mean_and_var = integers(*X), vectors()[:2]
    for batch_norm in (tnn.batch_norm, F.batch_norm) if torch.__version__ >= "2.13" else (tnn.batch_norm,):
        for statistics, eps in (((None, None), 0.0), ((None, None), -1e-5), (mean_and_var, -1e-5)):
            assert refusal(batch_norm, x, *statistics, training=statistics[0] is None, eps=eps) == "ValueError"


@holds(57, "a mean of 1e6 with a deviation of 1")
def _() -> None:
    for mean in (1e4, 1e6):
        x = randn(4, 3, 16, 16) + mean
        check(tnn.batch_norm, F.batch_norm, x, None, None, None, None, training=True)
        y = tnn.batch_norm(x, None, None, training=True)
        assert y.std((0, 2, 3), correction=0).sub(1).abs().max() < 1e-3


@holds(58, "float16 values of 3e4")
def _() -> None:
    x = 3e4 + 100 * randn(4, 3, 8, 8).clamp(-20, 20)
    check(tnn.batch_norm, F.batch_norm, x.half(), None, None, None, None, training=True)


@like_torch(59, "NaN changes its own channel only", ulps=16)
def _(nn: Any) -> Any:
    x = integers(*X)
    x[1, 2, 3, 4] = NAN
    return normalised(nn, x, *vectors())


@like_torch(59, "inf makes its channel's mean infinite, and its output NaN", ulps=16)
def _(nn: Any) -> Any:
    results = []
    for values in ((INF,), (-INF,), (INF, -INF)):
        for index in (0, -1):
            x = integers(*X)
            x[index, 1, index, index] = values[0]
            x[1, 1, 2, 2] = values[-1]
            results += [normalised(nn, x, *vectors())] + [normalised(nn, x, *vectors(), training=False)]
    return results


@holds(60, "in evaluation the gradient uses the running statistics")
def _() -> None:
    mean, var, w, b = vectors()

    def evaluated(batch_norm: Any) -> Any:
        return lambda x, w, b: batch_norm(x, mean.to(x), var.to(x), w, b)

    check(evaluated(tnn.batch_norm), evaluated(F.batch_norm), randn(*X), w, b)


# On a GPU, tl.rsqrt is rsqrt.approx.f32. Its error may round a 16-bit result to the next value.
@like_torch(61, "16 bits with float32 parameters", ulps=2 if INTERPRETED else 4)
def _(nn: Any) -> Any:
    return [
        normalised(nn, integers(*X, dtype=dtype), *vectors(), training=training)
        for dtype in (torch.float16, torch.bfloat16)
        for training in (True, False)
    ]


@like_torch(62, "16 bits throughout", ulps=4)
def _(nn: Any) -> Any:
    return [
        normalised(nn, integers(*X, dtype=dtype), *vectors(dtype), training=training)
        for dtype in (torch.float16, torch.bfloat16)
        for training in (True, False)
    ]


@like_torch(63, "float32 with 16-bit parameters")
def _(nn: Any) -> Any:
    mean, var, w, b = vectors()
    x = integers(*X)
    return [
        refusal(nn.batch_norm, x, mean, var, w.to(dtype), b.to(dtype), training)
        for dtype in (torch.bfloat16, torch.float64)
        for training in (True, False)
    ]


@like_torch(64, "weight without bias, and bias without weight", ulps=16)
def _(nn: Any) -> Any:
    mean, var, w, b = vectors()
    x = integers(*X)
    return [
        normalised(nn, x, mean, var, *affine, training=training)
        for affine in ((w, None), (None, b), (None, None))
        for training in (True, False)
    ]


@like_torch(65, "no running statistics: an error in evaluation, allowed in training", ulps=16)
def _(nn: Any) -> Any:
    x, (mean, var, _, _) = integers(*X), vectors()
    return (
        refusal(nn.batch_norm, x, None, None, words="running_mean must be defined in evaluation mode"),
        refusal(nn.batch_norm, x, mean, None, words="running_var must be defined in evaluation mode"),
        refusal(nn.batch_norm, x, None, var, training=True),
        normalised(nn, x),
    )


@like_torch(66, "wrong number of channels or axes")
def _(nn: Any) -> Any:
    x, four = integers(2, 3, 4, 4), vectors()
    module = nn.BatchNorm2d(3)
    return [
        refusal(nn.batch_norm, x, *four[:2], words="running_mean should contain 3 elements not 4"),
        refusal(nn.batch_norm, x, None, None, four[2], None, True, words="weight should contain 3 elements not 4"),
        refusal(module, torch.ones(2, 3), words="expected 4D input (got 2D input)"),
        refusal(module, torch.ones(2, 3, 4), words="expected 4D input (got 3D input)"),
        refusal(nn.BatchNorm1d(3), torch.ones(2, 3, 4, 4)),
        refusal(module, torch.ones(2, 4, 4, 4)),
    ]


@like_torch(67, "frozen in a model in training; a gradient of the weight alone", ulps=16)
def _(nn: Any) -> Any:
    module = filled(nn.BatchNorm2d(4))
    module.running_var.fill_(4.0)
    before = nn.Conv2d(4, 4, 1, bias=False)
    filled(before)
    module.eval()
    module(before(integers(*X))).square().sum().backward()
    results = [before.weight.grad, module.weight.grad, module.bias.grad, module.running_mean, module.num_batches_tracked]
    w = vectors()[2].requires_grad_()
    nn.batch_norm(integers(*X), None, None, w, vectors()[3], True).square().sum().backward()
    return [*results, w.grad]


@like_torch(68, "running statistics of another dtype than the input", ulps=16)
def _(nn: Any) -> Any:
    mean, var, w, b = vectors()
    x = integers(*X)
    return (
        refusal(nn.batch_norm, x, mean.double(), var.double(), training=True),
        refusal(nn.batch_norm, x, mean, var.double(), training=True),
        refusal(nn.batch_norm, x.half(), mean, var.half(), training=True),
        normalised(nn, x.half(), mean, var),
    )


@holds(69, "more than 2^24 pixels per channel are counted exactly")
def _() -> None:
    with large_tiles():
        x = torch.ones(1, 1, 1, 1).expand(5, 1, 2**11, 2**11)
        mean, var = ops.batchnorm2d_statistics(x)
        assert mean == 1 and var == 0
        dw, db = ops.batchnorm2d_sums(x, x, torch.zeros(1), torch.ones(1), 0.0)
        assert dw == db == ops.channel_sum(x) == 5 * 2**22
