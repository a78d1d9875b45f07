"""CUDA streams, several devices and CUDA graphs; and autograd's checks of saved tensors, which need no GPU."""

import pytest
import torch
from torch import Tensor

import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.operator_cases import CASES, results
from tests.support.record import OperatorCase
from trinn.kernels import ops

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
names = pytest.mark.parametrize("name", CASES)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for key, value in expected.items():
        assert torch.equal(found[key].to(value.device), value), key


@gpu
@names
def test_current_stream(name: str) -> None:
    """A kernel runs in the current stream, after the pending writes of that stream."""
    case = CASES[name]
    tensors, others = case.tensors(), case.others()
    expected = results(case, tensors, others)
    stream = torch.cuda.Stream()
    late = [torch.zeros_like(t) for t in tensors]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for target, source in zip(late, tensors, strict=True):
            target.copy_(source)
        found = results(case, late, others)
        written = torch.cuda.Event()
        written.record()
    torch.cuda.current_stream().wait_event(written)
    same(found, expected)


@two_gpus
@names
def test_another_device(name: str) -> None:
    """Tensors may be on cuda:1 while cuda:0 is the current device. The current device does not change."""
    case = CASES[name]
    tensors, others = case.tensors(), case.others()
    expected = results(case, tensors, others)
    found = results(case, [t.to("cuda:1") for t in tensors], tuple(t.to("cuda:1") for t in others))
    assert torch.cuda.current_device() == 0
    assert all(value.device.index == 1 for value in found.values())
    same(found, expected)


def forward_and_backward(case: OperatorCase, inputs: list[Tensor], others: tuple[Tensor, ...], dy: Tensor) -> list[Tensor]:
    result = case.function(*inputs, *others)
    y = result[0] if isinstance(result, tuple) else result
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


@gpu
@names
def test_graph(name: str) -> None:
    """A captured forward and backward, replayed on new values in the same memory, equals a direct call on these values."""
    case = CASES[name]
    inputs, others = [t.requires_grad_() for t in case.tensors()], case.others()
    with torch.no_grad():  # an autograd graph from another stream would make the capture wait for that stream
        result = case.function(*inputs, *others)
    dy = randn(*(result[0] if isinstance(result, tuple) else result).shape, seed=3)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels cannot be compiled during a capture
        forward_and_backward(case, inputs, others, dy)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(case, inputs, others, dy)
    for seed in (7, 8):
        with torch.no_grad():
            for i, t in enumerate(inputs):
                t.copy_(randn(*t.shape, seed=seed + i))
            dy.copy_(randn(*dy.shape, seed=seed))
        graph.replay()
        for got, expected in zip(captured, forward_and_backward(case, inputs, others, dy), strict=True):
            assert torch.equal(got, expected)


@gpu
@names
def test_launch_cache(name: str) -> None:
    """From the second call on, kernels are launched from the launch cache, and give the same bits."""
    case = CASES[name]
    tensors, others = case.tensors(), case.others()
    expected = results(case, tensors, others)
    for _ in range(3):
        same(results(case, [t.clone() for t in tensors], others), expected)


@gpu
def test_new_shape_inside_a_capture() -> None:
    """A capture may make the first call with a shape if another shape has compiled the kernel."""
    tnn.relu(randn(64, 32))
    x, graph = randn(48, 32), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = tnn.relu(x)
    x.copy_(randn(48, 32, seed=1))
    graph.replay()
    assert torch.equal(y, torch.relu(x))


@names
def test_inference_mode(name: str) -> None:
    case = CASES[name]
    tensors, others = case.tensors(), case.others()
    expected = results(case, tensors, others)
    with torch.inference_mode():
        result = case.function(*tensors, *others)
        inside = case.function(*(t.clone() for t in tensors), *others)
    for outputs in (result, inside):
        for i, y in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
            assert y.is_inference() and not y.requires_grad
            assert torch.equal(y, expected[f"output {i}"])


def test_inference_tensors_are_not_saved() -> None:
    """As in torch, a tensor made in inference mode cannot be saved for backward."""
    with torch.inference_mode():
        x = randn(1, 2, 5, 5)
    w = randn(3, 2, 3, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="[Ii]nference tensors cannot be saved for backward"):
        tnn.conv2d(x, w)


SAVED = [(name, number) for name, case in CASES.items() for number in case.saved]


@pytest.mark.parametrize(("name", "changed"), SAVED)
def test_a_saved_input_that_changed(name: str, changed: int) -> None:
    """As in torch, writing to a saved input between forward and backward raises, also through a view."""
    case = CASES[name]
    for write in (lambda t: t.add_(1), lambda t: t[0].zero_()):
        inputs = [(t * 1).requires_grad_() for t in case.tensors()]
        y = case.function(*inputs, *case.others())
        with torch.no_grad():
            write(inputs[changed])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_a_saved_output_that_changed() -> None:
    """ReLU saves its output. Our in-place ReLU counts as a write."""
    x = randn(3, 4).requires_grad_()
    for write in (lambda t: t.mul_(2), lambda t: tnn.relu_(t), lambda t: ops.activation_(t, "relu")):
        y = tnn.relu(x)
        with torch.no_grad():
            write(y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_saved_indices_that_changed() -> None:
    x, indices = randn(1, 2, 2, 2).requires_grad_(), torch.arange(8, device=DEVICE).reshape(1, 2, 2, 2)
    y = tnn.max_unpool2d(x, indices, 2)
    indices.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
