"""Fusion of consecutive layers: `ConvActivation2d` and similar modules, and the forwards set by `convert`.

fused_functional.py has the table of fused operators. Layers run one by one if fusing would skip a hook, a replaced forward or a
parametrization.

`convert` replaces the forward of a layer of a user's subclass by `patched_forward`. With `fuse`, it replaces the forward of an
nn.Sequential by `sequence_forward`, and the forward of each layer of a named run by `run_forward`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import activation as activations
from .activation import MODULES, ReLU, Sigmoid, activated, described
from .adaptive_pool2d import AdaptiveAvgPool2d
from .batchnorm2d import BatchNorm1d, BatchNorm2d, batch_norm, count_batch, norm_arguments
from .classes import Layer
from .conv2d import Conv2d, conv2d, padded
from .conv_transpose2d import ConvTranspose2d, conv_transpose2d, transposed_arguments
from .fused_functional import FUSIONS, Arguments, batch_norm_activation
from .linear import Linear, linear
from .pool2d import MaxPool2d, max_pool2d
from .public import layer
from .scale_add import channel_scale

__all__ = [
    "BNActivation2d", "BNAddActivation2d", "ConvActivation2d", "ConvActivationMaxPool2d", "ConvBNActivation2d",
    "ConvTransposeActivation2d", "LinearActivation", "SqueezeExcitation",
]  # fmt: skip

Operator = Callable[..., Any]

# For each fusable class of torch.nn: trinn's class, and the functional computed by its forward.
FUSABLE: dict[Layer, tuple[Layer, Operator]] = {
    nn.Conv2d: (Conv2d, conv2d), nn.BatchNorm2d: (BatchNorm2d, batch_norm), nn.BatchNorm1d: (BatchNorm1d, batch_norm),
    nn.Linear: (Linear, linear), nn.MaxPool2d: (MaxPool2d, max_pool2d), nn.ConvTranspose2d: (ConvTranspose2d, conv_transpose2d),
    **{torchs: (getattr(activations, torchs.__name__), activated) for torchs in MODULES},
}  # fmt: skip
_CONVOLUTIONS = nn.Conv2d, nn.ConvTranspose2d
FUSABLE_OURS = tuple(ours for ours, _ in FUSABLE.values())


def _methods(cls: Any) -> list[Any]:
    return [getattr(cls, name, None) for name in ("_call_impl", "forward", "_conv_forward")]


_PLAIN_METHODS = {cls: _methods(cls) for cls in (*FUSABLE, *FUSABLE_OURS)}
_MARK = "_trinn_fused"  # attribute of a run's result: the run, and the index of the layer to be called next


def call_sequence(layers: Sequence[Any], input: Any) -> Any:
    """Call the layers one after the other, fusing where possible; return the result of the last."""
    while layers:
        count, function = fusion_of(layers) if isinstance(input, Tensor) else (1, None)  # torch.fx passes a Proxy
        if function is None or isinstance(layers[0], _CONVOLUTIONS) and input.dim() != 4:
            input, count = layers[0](input), 1
        else:
            input = _fused(function, layers[:count], input)
        layers = layers[count:]
    return input


def fusion_of(layers: Sequence[Any]) -> tuple[int, Callable[..., Tensor] | None]:
    """The number of layers to fuse, starting with the first, and the function that fuses them; (1, None) if there is none.

    A BatchNorm1d is fused only as the first layer: then `_fused` checks its input. After a convolution it would raise.
    """
    found: list[Operator | None] = []
    for each in layers:
        found.append(operator_of(each))
        if found[-1] is None or len(found) == 3:  # no sequence of layers is longer
            break
    for run, function in FUSIONS.items():
        if tuple(found[: len(run)]) == run and not any(isinstance(each, nn.BatchNorm1d) for each in layers[1 : len(run)]):
            return len(run), function
    return 1, None


def operator_of(module: Any) -> Operator | None:
    """The functional computed by a call of this layer; None if there is none, or if the call also runs hooks or overrides.

    trinn's layer may have the forward of a named run. torch's layer needs such a forward or `patched_forward`, since otherwise
    it is not converted.
    """
    for torchs, (ours, operator) in FUSABLE.items():
        if isinstance(module, torchs):
            cls, forwards = (
                (ours, (None, run_forward)) if isinstance(module, ours) else (torchs, (patched_forward, run_forward))
            )
            alone = is_plain(module, cls, forwards) and not getattr(module, "return_indices", False)
            return operator if alone else None
    return None


def is_plain(module: nn.Module, cls: Layer, forwards: tuple[Any, ...]) -> bool:
    """Whether a call of a module runs only the forward of `cls` or one of `forwards`, without hooks and overrides."""
    kind, forward = type(module), module.__dict__.get("forward")
    return (
        _methods(kind) == _PLAIN_METHODS[cls] and kind.__call__ is nn.Module.__call__
        and getattr(forward, "func", forward) in forwards and "_conv_forward" not in module.__dict__
        and "parametrizations" not in module._modules
        and not module._forward_pre_hooks and not module._forward_hooks
        and not module._backward_pre_hooks and not module._backward_hooks
        and not nn.modules.module._has_any_global_hook()
    )  # fmt: skip


def _fused(function: Callable[..., Tensor], layers: Sequence[Any], input: Tensor) -> Tensor:
    """Compute the result of the layers, called one after the other, by the function that fuses them."""
    arguments: list[Arguments] = []
    for place, each in enumerate(layers):
        if isinstance(each, nn.Conv2d):
            input, padding = padded(each, input)
            arguments.append((each.weight, each.bias, each.stride, padding, each.dilation, each.groups))
        elif isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if place == 0:
                each._check_input_dim(input)
            arguments.append(norm_arguments(each, uncounted=1))
        elif isinstance(each, nn.MaxPool2d):
            arguments.append((each.kernel_size, each.stride, each.padding, each.dilation, each.ceil_mode))
        elif isinstance(each, nn.ConvTranspose2d):
            arguments.append(transposed_arguments(each, input))
        elif isinstance(each, nn.Linear):
            arguments.append((each.weight, each.bias))
        else:
            arguments.append(described(each))
    y = function(input, *arguments)
    for each in layers:
        if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d)):
            count_batch(each)  # last, so that a failing call is not counted
    return y


def patched_forward(module: Any, *args: Any, **options: Any) -> Any:
    """The forward of a user's subclass of a layer, run with trinn's functions in place of torch's."""
    from .patched import patched  # here, since it imports all operators

    with patched():
        return type(module).forward(module, *args, **options)


def sequence_forward(module: nn.Sequential, input: Any) -> Any:
    """The forward of an nn.Sequential with fusion. It fuses the children present at the time of the call."""
    return call_sequence(tuple(module._modules.values()), input)


def run_forward(module: Any, run: tuple[nn.Module, ...], input: Any) -> Any:
    """The forward of a layer in a named run.

    The first layer of a run computes the result of the whole run and marks it. Each later layer returns a marked input
    unchanged, and computes its own forward for any other input. So a ReLU may be in several runs, and may also be called
    outside them.

    Args:
        run: the layers of the run that begins with this layer; empty if no run does.
    """
    if isinstance(input, Tensor) and not torch.compiler.is_compiling():
        layers, place = getattr(input, _MARK, ((), 0))
        if place < len(layers) and layers[place] is module:
            delattr(input, _MARK)
            if place + 1 < len(layers):
                setattr(input, _MARK, (layers, place + 1))
            return input
        count, function = fusion_of(run)
        if function is not None and count == len(run) and not (isinstance(module, _CONVOLUTIONS) and input.dim() != 4):
            y = _fused(function, run, input)
            setattr(y, _MARK, (run, 1))
            return y
    return type(module).forward(module, input) if isinstance(module, FUSABLE_OURS) else patched_forward(module, input)


class _Fused(nn.Sequential):
    """A fused sequence of layers of the given classes. As in nn.Sequential, a layer's name is its index."""

    classes: tuple[type[nn.Module] | tuple[type[nn.Module], ...], ...]

    def __init__(self, *modules: nn.Module) -> None:
        if len(modules) != len(self.classes) or not all(map(isinstance, modules, self.classes)):
            wanted = ", ".join("activation" if isinstance(c, tuple) else c.__name__ for c in self.classes)
            got = ", ".join(f"{type(m).__module__}.{type(m).__name__}" for m in modules)
            raise TypeError(f"{type(self).__name__}: expected trinn's {wanted}, but got {got or 'nothing'}")
        super().__init__(*modules)

    def forward(self, input: Tensor) -> Tensor:
        return call_sequence(tuple(self), input)


ANY_ACTIVATION = tuple(ours for torchs, (ours, _) in FUSABLE.items() if torchs in MODULES)


@layer
class ConvActivation2d(_Fused):
    """f(conv(x)): a Conv2d and an activation."""

    classes = Conv2d, ANY_ACTIVATION


@layer
class ConvTransposeActivation2d(_Fused):
    """f(conv(x)): a ConvTranspose2d and an activation."""

    classes = ConvTranspose2d, ANY_ACTIVATION


@layer
class ConvActivationMaxPool2d(_Fused):
    """pool(f(conv(x))): a Conv2d, an activation and a MaxPool2d."""

    classes = Conv2d, ANY_ACTIVATION, MaxPool2d


@layer
class ConvBNActivation2d(_Fused):
    """f(bn(conv(x))): a Conv2d, a BatchNorm2d and an activation."""

    classes = Conv2d, BatchNorm2d, ANY_ACTIVATION


@layer
class BNActivation2d(_Fused):
    """f(bn(x)): a BatchNorm2d and an activation."""

    classes = BatchNorm2d, ANY_ACTIVATION


@layer
class BNAddActivation2d(_Fused):
    """f(bn(x) + residual): a BatchNorm2d and an activation, as at the end of a ResNet block."""

    classes = BatchNorm2d, ANY_ACTIVATION

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        if not isinstance(input, Tensor) or None in map(operator_of, self):  # torch.fx passes a Proxy
            return self[1](self[0](input) + residual)
        return _fused(lambda x, norm, f: batch_norm_activation(x, norm, f, residual), tuple(self), input)


@layer
class LinearActivation(_Fused):
    """f(linear(x)): a Linear and an activation."""

    classes = Linear, ANY_ACTIVATION


@layer
class SqueezeExcitation(nn.Module):
    """Scale each channel of an image by a function of the means of all its channels (arXiv:1709.01507).

    The layer loads the state_dict of torchvision.ops.SqueezeExcitation: its submodules and arguments have the same names.

    Args:
        input_channels: C, of the input (N, C, H, W).
        squeeze_channels: channels between the two 1x1 convolutions.
        activation, scale_activation: classes of the activations behind the first and the second convolution.
    """

    def __init__(
        self, input_channels: int, squeeze_channels: int, activation: Any = ReLU, scale_activation: Any = Sigmoid
    ) -> None:  # fmt: skip
        super().__init__()
        self.avgpool = AdaptiveAvgPool2d(1)
        self.fc1 = Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = Conv2d(squeeze_channels, input_channels, 1)
        self.activation, self.scale_activation = activation(), scale_activation()

    def forward(self, input: Tensor) -> Tensor:
        layers = self.avgpool, self.fc1, self.activation, self.fc2, self.scale_activation
        return channel_scale(input, call_sequence(layers, input))
