"""The record of layers/fused.py."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

import trinn.layers as tnn
from bench import shapes
from tests.support.record import IMAGE, MEDIUM, Mutant, Operator, called, case
from trinn.layers.fused_functional import conv2d_activation


def conv_bn_relu(nn: Any, channels: int, filters: int) -> Callable[..., Any]:
    norm = nn.BatchNorm2d(filters, track_running_stats=False)
    return called(nn.ConvBNActivation2d(nn.Conv2d(channels, filters, 3, padding=1), norm, nn.ReLU()))


def conv_relu_pool(nn: Any, channels: int, filters: int) -> Callable[..., Any]:
    return called(nn.ConvActivationMaxPool2d(nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))


def bn_add_relu(nn: Any, channels: int) -> Callable[..., Any]:
    return called(nn.BNAddActivation2d(nn.BatchNorm2d(channels, track_running_stats=False), nn.ReLU()))


def conv_add_silu(nn: Any) -> Callable[..., Any]:
    """silu(conv2d(x, w, b) + conv2d(x, w)). trinn has no module for it."""

    def apart(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return nn.silu(nn.conv2d(x, w, b, padding=1) + nn.conv2d(x, w, padding=1))

    def fused(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return conv2d_activation(x, (w, b, 1, 1, 1, 1), ("silu", None), nn.conv2d(x, w, padding=1))

    return fused if nn.conv2d is tnn.conv2d else apart


def linear_relu(nn: Any, inputs: int, outputs: int) -> Callable[..., Any]:
    return called(nn.LinearActivation(nn.Linear(inputs, outputs), nn.ReLU()))


FILTERS, MANY_FILTERS = ((3, 5, 3, 3), (3,)), ((32, 16, 3, 3), (32,))
MUTANTS = (
    Mutant("overhanging windows are pooled in a tile", "kernels/conv2d/fused.py", " and tuple(pooled) == (size[0] // window[0], size[1] // window[1])", "", "fused"),
    Mutant("pooling in a tile ignores padding", "kernels/conv2d/fused.py", "max(*window_padding, 0) == 0 and ", "", "fused"),
    Mutant("modules with hooks are fused", "layers/fused.py", "and not module._forward_pre_hooks and not module._forward_hooks", "", "fuse"),
    Mutant("fused evaluation loses gradients", "layers/fused_functional.py", "torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad", "False and any(tensor is not None and tensor.requires_grad", "fused"),
    Mutant("any layer accepts a marked result", "layers/fused.py", "if place < len(layers) and layers[place] is module:", "if place < len(layers):", "fuse"),
    Mutant("a patched class is fused", "layers/fused.py", "_methods(kind) == _PLAIN_METHODS[cls]", "True", "fuse"),
    Mutant("a convolution without its residual", "kernels/conv2d/pointer.py", "value = add_residual(value, tl.load(residual + at, mask=in_result[:, None] & exists[None, :]))", "pass", "fused"),
    Mutant("a depthwise convolution without its residual", "kernels/conv2d/depthwise_sliding.py", "acc = add_residual(acc, tl.load(residual + complete * y_h, mask=mask))", "pass", "fused"),
    Mutant("TMA: every part adds the residual of the first", "kernels/conv2d/tma.py", "value = add_residual(value, ahead[i % AHEAD])", "value = add_residual(value, ahead[0])", "conv2d_tma"),
    Mutant("a residual is read with the strides of the result", "kernels/conv2d/passes.py", "or has_strides(residual, result.stride())", "or True", "fused"),
    Mutant("a residual has the gradient of the activation's result", "layers/fused_functional.py", "return *gradients, dslopes, dz if ctx.needs_input_grad[4] else None", "return *gradients, dslopes, dy if ctx.needs_input_grad[4] else None", "fused"),
    Mutant("an addend is added before the activation", "kernels/batchnorm2d.py", "            if AFTER:", "            if False:", "fused"),
    Mutant("the gradient of an addend passes the activation", "layers/batchnorm2d.py", "return *gradients[:5], dy if", "return *gradients[:5], gradients[5] if", "fused"),
    Mutant("additions are taken beside a call of torch", "layers/backend.py", "if any(self._is_left(o) and o not in taken", "if any(False and o not in taken", "backend"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "conv2d, ReLU": case(called(nn.ConvActivation2d(nn.Conv2d(5, 3, 3, padding=1), nn.ReLU())), IMAGE, *FILTERS),
        "conv2d, ReLU, max pool": case(conv_relu_pool(nn, 5, 3), IMAGE, *FILTERS),
        "conv2d, batch norm, ReLU": case(conv_bn_relu(nn, 5, 3), IMAGE, *FILTERS, (3,), (3,), per_image=False, fake_cuda=False),
        "batch norm, addition, ReLU": case(bn_add_relu(nn, 5), IMAGE, IMAGE, (5,), (5,), per_image=False),
        "linear, ReLU": case(linear_relu(nn, 37, 19), (3, 37), (19, 37), (19,)),
        "conv2d, addition, SiLU": case(conv_add_silu(nn), IMAGE, *FILTERS),
        "conv_transpose2d, PReLU": case(
            called(nn.ConvTransposeActivation2d(nn.ConvTranspose2d(5, 3, 3), nn.PReLU(3))),
            IMAGE,
            (5, 3, 3, 3),
            (3,),
            (3,),
            fake_cuda=False,
        ),
        "batch norm, addition, PReLU": case(
            called(nn.BNAddActivation2d(nn.BatchNorm2d(5, track_running_stats=False), nn.PReLU())),
            IMAGE,
            IMAGE,
            (5,),
            (5,),
            (1,),
            per_image=False,
            fake_cuda=False,
        ),
        "linear, GELU": case(called(nn.LinearActivation(nn.Linear(37, 19), nn.GELU())), (3, 37), (19, 37), (19,)),
    },
    programs=lambda nn: {
        "linear, ReLU": case(linear_relu(nn, 400, 120), (128, 400), (120, 400), (120,), programs=6),
        "batch norm, addition, ReLU": case(bn_add_relu(nn, 16), MEDIUM, MEDIUM, (16,), (16,), programs=4),
        "conv2d, ReLU, max pool": case(conv_relu_pool(nn, 16, 32), MEDIUM, *MANY_FILTERS, programs=7),
        "conv2d, batch norm, ReLU": case(conv_bn_relu(nn, 16, 32), MEDIUM, *MANY_FILTERS, (32,), (32,), programs=9),
    },
    fused_modules={
        "BNAddActivation2d": lambda: tnn.BNAddActivation2d(tnn.BatchNorm2d(4), tnn.ReLU()),
        "BNActivation2d": lambda: tnn.BNActivation2d(tnn.BatchNorm2d(4), tnn.ReLU()),
        "ConvBNActivation2d": lambda: tnn.ConvBNActivation2d(tnn.Conv2d(4, 4, 1), tnn.BatchNorm2d(4), tnn.ReLU()),
        "ConvActivation2d": lambda: tnn.ConvActivation2d(tnn.Conv2d(4, 4, 1), tnn.ReLU()),
        "ConvTransposeActivation2d": lambda: tnn.ConvTransposeActivation2d(tnn.ConvTranspose2d(4, 4, 1), tnn.SiLU()),
        "ConvActivationMaxPool2d": lambda: tnn.ConvActivationMaxPool2d(tnn.Conv2d(4, 4, 1), tnn.ReLU(), tnn.MaxPool2d(2)),
        "SqueezeExcitation": lambda: tnn.SqueezeExcitation(4, 2),
        "LinearActivation": lambda: tnn.LinearActivation(tnn.Linear(6, 6), tnn.ReLU()),
    },
    passes={
        "conv2d and an activation": shapes.conv_activations((2, 5, 7, 6), 4),
        "conv2d, addition and an activation": shapes.residuals((2, 5, 7, 6), 4),
        "linear and an activation": shapes.linear_activations(5, 7, 6),
        "batch norm and an activation": shapes.batchnorm_activations(2, 5, 7, 6),
    },
    many_passes={
        "conv2d and an activation": shapes.conv_activations((2**14, 64, 64, 64), 64),
        "conv2d, addition and an activation": shapes.residuals((2**14, 64, 64, 64), 64),
        "linear and an activation": shapes.linear_activations(2**21, 2048, 1024),
        "batch norm and an activation": shapes.batchnorm_activations(2**14, 64, 64, 64),
    },
    mutants=MUTANTS,
)
