"""In-place operators on every kind of tensor, and operators on inference tensors.

torch is the oracle: the value, the version counter, autograd's attributes of the result, the outcome of a backward pass, or
the exception must be the same.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.operator_cases import CASES, TORCH_CASES


class Viewed(torch.autograd.Function):
    """A Function that returns views of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, split: bool) -> Any:
        return (x[:1], x[1:]) if split else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return torch.cat(gradients), None


def _values() -> Tensor:
    return torch.linspace(-1, 1, 24, device=DEVICE).reshape(2, 3, 2, 2)


def _leaf() -> Tensor:
    return _values().requires_grad_()


def _without_gradients(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return function(x)


def _in_inference_mode(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.inference_mode():
        return function(x)


def _first(x: Tensor) -> Tensor:
    return x[:1]


KINDS: dict[str, Callable[[], Tensor]] = {
    "plain": _values,
    "float64": lambda: _values().double(),
    "float16": lambda: _values().half(),
    "integers": lambda: torch.arange(-3, 3, device=DEVICE),
    "bool": lambda: _values() > 0,
    "complex": lambda: _values().to(torch.complex64),
    "empty": lambda: _values()[:0],
    "scalar": lambda: torch.tensor(-1.0, device=DEVICE),
    "strided": lambda: _values().transpose(0, 3)[:, 1:],
    "a leaf": _leaf,
    "an empty leaf": lambda: _values()[:0].requires_grad_(),
    "a parameter": lambda: nn.Parameter(_values()),
    "a frozen parameter": lambda: nn.Parameter(_values(), requires_grad=False),
    "a detached leaf": lambda: _leaf().detach(),
    "a result": lambda: _leaf() * 1,
    "a result saved for its backward": lambda: _leaf().exp(),
    "a convolution's result": lambda: F.conv2d(_leaf(), torch.ones(3, 3, 1, 1, device=DEVICE)),
    "a view of a plain tensor": lambda: _first(_values()),
    "a view of a leaf": lambda: _first(_leaf()),
    "a view of a result": lambda: _first(_leaf() * 1),
    "a view of a plain tensor, from no_grad": lambda: _without_gradients(_first, _values()),
    "a view of a leaf, from no_grad": lambda: _without_gradients(_first, _leaf()),
    "a view of a result, from no_grad": lambda: _without_gradients(_first, _leaf() * 1),
    "a view of a result, from inference mode": lambda: _in_inference_mode(_first, _leaf() * 1),
    "one of several views of a plain tensor": lambda: _values().split(1)[0],
    "one of several views of a leaf": lambda: _leaf().split(1)[0],
    "one of several views of a result": lambda: (_leaf() * 1).unbind(0)[1],
    "a Function's view of a leaf": lambda: Viewed.apply(_leaf(), False),
    "a Function's view of a result": lambda: Viewed.apply(_leaf() * 1, False),
    "one of a Function's views": lambda: Viewed.apply(_leaf() * 1, True)[0],
    "a view as another dtype": lambda: torch.view_as_real(_values().to(torch.complex64).requires_grad_() * 1),
    "expanded": lambda: _values()[:1].expand(2, 3, 2, 2),
    "expanded, empty": lambda: _values()[:1, :, :0].expand(2, 3, 0, 2),
    "overlapping rows": lambda: _values().flatten().as_strided((4, 3), (2, 1)),
    "negative bit": lambda: torch.complex(_values(), _values()).conj().imag,
    "inference tensor": lambda: _in_inference_mode(torch.clone, _values()),
    "inference tensor, empty": lambda: _in_inference_mode(torch.clone, _values()[:0]),
    "inference tensor, a view": lambda: _in_inference_mode(_first, _in_inference_mode(torch.clone, _values())),
}
IN_PLACE: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "relu_": lambda library: library.relu_,
    "relu": lambda library: lambda x: library.relu(x, inplace=True),
    "ReLU": lambda library: (nn.ReLU if library is F else tnn.ReLU)(inplace=True),
}
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def _written(function: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> Any:
    """The observable result of a write, or the type of its exception."""
    version = None if x.is_inference() else x._version
    try:
        with MODES[mode]():
            y = function(x)
    except Exception as error:
        return type(error)
    found: dict[str, Any] = {
        "the input is returned": y is x,
        "a new version": None if version is None else x._version > version,
    }
    try:  # autograd may report a forbidden write to a view only now
        found["values"] = y.detach().clone()
        found["autograd"] = y.requires_grad, y.is_leaf, y.grad_fn is None, y._is_view(), y.is_inference()
        if y.requires_grad:
            (y * 1).sum().backward()
    except RuntimeError as error:
        found["later"] = str(error)[:60]
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operator", IN_PLACE)
@pytest.mark.parametrize("kind", KINDS)
def test_in_place(kind: str, operator: str, mode: str) -> None:
    got, expected = (_written(IN_PLACE[operator](library), KINDS[kind](), mode) for library in (tnn, F))
    assert type(got) is type(expected), f"{got}, torch has {expected}"
    if not isinstance(expected, dict):
        assert got == expected, f"{got}, torch has {expected}"
    else:
        assert torch.equal(got.pop("values"), expected.pop("values")) and got == expected


# torch.func transforms around an in-place function: the written tensor is an input of the transform or comes from outside.
TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "vmap": lambda function, x: torch.vmap(function)(x),
    "grad": lambda function, x: torch.func.grad(lambda v: function(v * 1).sum())(x),
    "grad of the input": lambda function, x: torch.func.grad(lambda v: function(v).sum())(x),
    "jvp": lambda function, x: torch.func.jvp(lambda v: function(v * 1), (x,), (torch.ones_like(x),)),
    "vmap, outer tensor": lambda function, x: torch.vmap(lambda _: function(x))(torch.ones(2, device=x.device)),
    "grad, outer tensor": lambda function, x: torch.func.grad(lambda v: (function(x) * v).sum())(torch.ones_like(x)),
    "vmap of grad": lambda function, x: torch.vmap(torch.func.grad(lambda v: function(v * 1).sum()))(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_in_place_in_a_transform(transform: str) -> None:
    found: list[Any] = []
    for library in (tnn, F):
        x = _values()
        try:
            found.append((TRANSFORMS[transform](library.relu_, x), x))
        except Exception as error:
            found.append(type(error))
    got, expected = found
    torch.testing.assert_close(got, expected) if isinstance(expected, tuple) else None
    assert isinstance(expected, tuple) or got == expected


# Kinds of running statistics. torch updates all of them.
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": torch.clone,
    "strided": lambda v: torch.stack([v, v], 1)[:, 0],
    "a leaf": lambda v: v.clone().requires_grad_(),
    "a result": lambda v: v.clone().requires_grad_() * 1,
    "a frozen parameter": lambda v: nn.Parameter(v.clone(), requires_grad=False),
    "a view of a leaf, from no_grad": lambda v: _without_gradients(torch.detach, v.clone().requires_grad_()),
    "one of several views": lambda v: torch.stack([v, v]).unbind(0)[0],
    "inference tensor": lambda v: _in_inference_mode(torch.clone, v),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", STATISTICS)
def test_running_statistics(kind: str, training: bool, mode: str) -> None:
    found: list[Any] = []
    for library in (tnn, F):
        mean, var = (STATISTICS[kind](torch.arange(3.0, device=DEVICE) + 1) for _ in range(2))
        try:
            with MODES[mode]():
                y = library.batch_norm(_values(), mean, var, None, None, training)
            found.append([v.detach().clone() for v in (y, mean, var)])
        except Exception as error:
            found.append(type(error))
    got, expected = found
    torch.testing.assert_close(got, expected) if isinstance(expected, list) else None
    assert isinstance(expected, list) or got == expected


@pytest.mark.parametrize("mode", MODES)
def test_counting_batches(mode: str) -> None:
    """A batch norm created in inference mode can count batches only in inference mode."""
    found = []
    for library in (tnn, nn):
        with torch.inference_mode():
            norm = library.BatchNorm2d(3, device=DEVICE)
        try:
            with MODES[mode]():
                norm(_values())
            found.append(int(norm.num_batches_tracked))
        except Exception as error:
            found.append(type(error))  # type: ignore[arg-type]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", CASES)
def test_inference_tensors(name: str) -> None:
    """Replace each tensor of a call in turn by an inference tensor: an error where backward would save it, as in torch."""
    for number in range(len(CASES[name].shapes) + len(CASES[name].others())):
        for mode, enter in MODES.items():
            for gradients in (False, True):
                found: list[Any] = []
                for case in (CASES[name], TORCH_CASES[name]):
                    tensors = [t.requires_grad_(gradients) for t in case.tensors()] + list(case.others())
                    tensors[number] = _in_inference_mode(torch.clone, tensors[number])
                    try:
                        with enter():
                            result = case.function(*tensors)
                    except Exception as error:
                        found.append(type(error))
                    else:
                        outputs = result if isinstance(result, tuple) else (result,)
                        found.append([(y.is_inference(), y.requires_grad, y.is_leaf) for y in outputs])
                assert found[0] == found[1], f"tensor {number}, {mode}: {found[0]}, torch has {found[1]}"


def test_running_statistics_saved_for_backward() -> None:
    """docs/differences.md: torch's backward uses the updated running statistics without an error; trinn's raises."""
    mean, factor = torch.ones(3, device=DEVICE), torch.ones(3, device=DEVICE, requires_grad=True)
    loss = (mean * factor).sum()
    tnn.batch_norm(randn(2, 3, 4, 4), mean, torch.ones(3, device=DEVICE), training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
