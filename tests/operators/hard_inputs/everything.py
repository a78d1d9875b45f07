"""Rows from 90 on: inputs of every operator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import trinn.layers as tnn
from tests.operators.hard_inputs import TORCH, filled, grads, holds, integers, large_tiles, like_torch, outcome, refusal
from tests.support.check import DEVICE, LEAST_EPS


@dataclass(frozen=True)
class Call:
    """An operator for an image of four channels. `shapes` returns the shapes of its operands for a number of columns."""

    function: Callable[..., Tensor]
    shapes: Callable[[int], list[tuple[int, ...]]] = lambda columns: []

    def operands(self, x: Tensor) -> list[Tensor]:
        return [integers(*shape).to(x) for shape in self.shapes(x.shape[-1])]

    def __call__(self, nn: Any, x: Tensor) -> Tensor:
        return self.function(nn, x, *self.operands(x))


CALLS = {
    "conv2d": Call(lambda nn, x, w, b: nn.conv2d(x, w, b, 1, 1), lambda _: [(6, 4, 3, 3), (6,)]),
    "conv2d, depthwise": Call(lambda nn, x, w: nn.conv2d(x, w, None, 2, 1, groups=4), lambda _: [(4, 1, 3, 3)]),
    "conv_transpose2d": Call(lambda nn, x, w, b: nn.conv_transpose2d(x, w, b, 2), lambda _: [(4, 6, 2, 2), (6,)]),
    "linear": Call(lambda nn, x, w, b: nn.linear(x, w, b), lambda columns: [(3, columns), (3,)]),
    "relu": Call(lambda nn, x: nn.relu(x)),
    "max_pool2d": Call(lambda nn, x: nn.max_pool2d(x, 3, 2, 1)),
    "avg_pool2d": Call(lambda nn, x: nn.avg_pool2d(x, 2)),
    "adaptive_avg_pool2d": Call(lambda nn, x: nn.adaptive_avg_pool2d(x, (1, 2))),
    "adaptive_max_pool2d": Call(lambda nn, x: nn.adaptive_max_pool2d(x, (2, 3))),
    "batch_norm": Call(lambda nn, x, mean: nn.batch_norm(x, mean, mean * 0 + 1, eps=LEAST_EPS), lambda _: [(4,)]),
    "bilinear": Call(lambda nn, x: nn.interpolate(x, scale_factor=2, mode="bilinear")),
    "nearest": Call(lambda nn, x: nn.interpolate(x, scale_factor=2)),
}
GPU = torch.cuda.is_available()


@holds(90, "offsets above 2^31 because of one stride")
def _() -> None:
    # An offset truncated to 32 bits is 2^32 too small: inside the same storage, so the result is wrong instead of a crash.
    if GPU and torch.cuda.mem_get_info()[0] < 2**34:
        pytest.skip("needs 9 GB")
    storage = torch.UntypedStorage(2 * (2**32 + 2**20), device=DEVICE)
    huge = torch.empty(0, dtype=torch.float16).set_(storage, 2**31, (1, 4, 3, 4), (1, 1, 2**30, 8))
    huge.copy_(integers(1, 4, 3, 4))
    for name, call in CALLS.items():
        assert torch.equal(call(tnn, huge), call(tnn, huge.clone())), name


@like_torch(91, "storage without an alignment of 16 bytes")
def _(nn: Any) -> Any:
    x = integers(1 + 4 * 4 * 6)[1:].view(1, 4, 4, 6)
    return [grads(lambda x, call=call: call(nn, x), x) for call in CALLS.values()]


@holds(92, "operands on several devices")
def _() -> None:
    other = "cpu" if GPU else "meta"
    x, b = integers(1, 4, 4, 4), torch.ones(4, device=other)
    for function, *inputs in (
        (tnn.conv2d, x, torch.ones(4, 4, 1, 1, device=other)),
        (tnn.conv2d, x, integers(4, 4, 1, 1), b),
        (tnn.conv_transpose2d, x, torch.ones(4, 4, 1, 1, device=other)),
        (tnn.conv_transpose2d, x, integers(4, 4, 1, 1), b),
        (tnn.linear, x, torch.ones(4, 4, device=other)),
        (tnn.linear, x, integers(4, 4), b),
        (tnn.batch_norm, x, b, torch.ones(4)),
        (tnn.batch_norm, x, torch.ones(4), torch.ones(4), b),
    ):
        assert refusal(function, *inputs, words="same device") == "RuntimeError"


@holds(93, "tensors on a GPU that is not the current one")
def _() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for name, call in CALLS.items():
        x = integers(1, 4, 4, 4)
        with torch.device("cuda:1"):
            y = call(tnn, x.to("cuda:1"))
        assert torch.cuda.current_device() == 0 and y.device.index == 1
        assert torch.equal(y.cpu(), call(tnn, x.to("cuda:0")).cpu()), name


@holds(94, "another stream than the default")
def _() -> None:
    if not GPU:
        pytest.skip("streams are a GPU's")
    x = integers(1, 4, 4, 4)
    expected = {name: call(tnn, x) for name, call in CALLS.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        late = x * 0 + x  # a kernel in the default stream would read it too early
        got = {name: call(tnn, late) for name, call in CALLS.items()}
    stream.synchronize()
    for name in CALLS:
        assert torch.equal(got[name], expected[name]), name


@like_torch(95, "more planes than 65,535, the limit of two axes of a CUDA grid")
def _(nn: Any) -> Any:
    x, w = integers(1, 70000, 1, 2), torch.ones(70000, 1, 1, 1)
    with large_tiles():
        return (
            nn.relu(x),
            nn.max_pool2d(x, (1, 2)),
            nn.avg_pool2d(x, (1, 2)),
            nn.interpolate(x, scale_factor=2),
            nn.adaptive_avg_pool2d(x, 1),
            nn.batch_norm(x, torch.zeros(70000), torch.ones(70000), eps=LEAST_EPS),
            nn.conv2d(x, w, groups=70000),
            nn.conv2d(x.view(70000, 1, 1, 2), w[:1]),
            nn.linear(x.view(70000, 2), torch.ones(1, 2)),
        )


class Called(TorchDispatchMode):
    """Records the names of trinn's operators in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "trinn":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


@holds(96, "unneeded gradients are not computed")
def _() -> None:
    x = integers(2, 4, 5, 5)
    for function, operands, passes in (
        (tnn.conv2d, (x, integers(6, 4, 3, 3), integers(6)), ("conv2d_dgrad", "conv2d_wgrad", "channel_sum")),
        (tnn.conv_transpose2d, (x, integers(4, 6, 3, 3), integers(6)), ("conv2d_fprop", "conv2d_wgrad", "channel_sum")),
        (tnn.linear, (x, integers(6, 5), integers(6)), ("linear_dgrad", "linear_wgrad", "channel_sum")),
    ):
        everything = grads(function, *operands)[1:]
        for i, name in enumerate(passes):
            leaves = [t.detach().requires_grad_(i == j) for j, t in enumerate(operands)]
            y = function(*leaves)
            with Called() as called:
                (gradient,) = torch.autograd.grad(y, leaves[i], integers(*y.shape, seed=7))
            assert called.names == [name] and torch.equal(gradient, everything[i])


@like_torch(97, "unused outputs")
def _(nn: Any) -> Any:
    results = []
    for pool in (nn.max_pool2d, nn.adaptive_max_pool2d):
        x = integers(1, 4, 4, 4).requires_grad_()
        y, index = pool(x, 2, return_indices=True)
        results += [index.requires_grad, *torch.autograd.grad(y.sum(), x)]
    x, w = integers(1, 4, 4, 4).requires_grad_(), integers(6, 4, 3, 3).requires_grad_()
    dx, dw = torch.autograd.grad(nn.conv2d(x, w).sum(), (x, w), create_graph=True)
    return [
        *results,
        *torch.autograd.grad(dx.sum(), (x, w), allow_unused=True, retain_graph=True),
        *torch.autograd.grad(dw.sum(), (x,)),
    ]


@like_torch(98, "inference tensors")
def _(nn: Any) -> Any:
    with torch.inference_mode():
        x = integers(1, 4, 4, 4)
        results = [call(nn, x) for call in CALLS.values()]
        results.append(nn.relu_(x.clone()))
    leaf = integers(4, 4, 1, 1).requires_grad_()
    words = "Inference tensors cannot be saved for backward"
    return results, [y.is_inference() for y in results], refusal(nn.conv2d, x, leaf, words=words)


@like_torch(99, "a write to a saved input through a view")
def _(nn: Any) -> Any:
    results = []
    for function, operands in (
        (nn.conv2d, (integers(1, 4, 4, 4), integers(6, 4, 3, 3))),
        (nn.conv_transpose2d, (integers(1, 4, 4, 4), integers(4, 6, 3, 3))),
        (nn.linear, (integers(3, 5), integers(6, 5))),
        (lambda x, w: nn.batch_norm(x, None, None, w, training=True), (integers(2, 4, 4, 4), integers(4))),
    ):
        for written in (0, 1):
            leaves = [t.requires_grad_() for t in operands]
            values = [t * 1 for t in leaves]
            y = function(*values)
            values[written][:1].zero_()
            results.append(refusal(y.sum().backward, words="modified by an inplace operation"))
    return results


@holds(100, "a first call during CUDA graph capture")
def _() -> None:
    if not GPU:
        pytest.skip("graphs are a GPU's")
    x = integers(1, 4, 6, 10)  # a shape without compiled kernels
    for name, call in CALLS.items():
        operands, graph = call.operands(x), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = call.function(tnn, x, *operands)
        x.copy_(integers(1, 4, 6, 10, seed=1))
        graph.replay()
        assert torch.equal(y, call.function(tnn, x, *operands)), name


@like_torch(101, "a tensor with its negative bit set")
def _(nn: Any) -> Any:
    lazy = torch.complex(integers(1, 4, 4, 6), integers(1, 4, 4, 6, seed=1)).conj().imag
    return lazy.is_neg(), [grads(lambda x, call=call: call(nn, x), lazy) for call in CALLS.values()]


@like_torch(102, "one tensor as image and as filters")
def _(nn: Any) -> Any:
    return [grads(lambda x, f=f: f(x, x), integers(4, 4, 3, 3)) for f in (nn.conv2d, nn.conv_transpose2d)] + [
        grads(lambda x: nn.linear(x, x), integers(4, 4))
    ]


@holds(103, "8-bit floats, sparse and quantised tensors raise an error")
def _() -> None:
    x = integers(1, 4, 4, 4)
    small = {"eight bits": x.to(torch.float8_e4m3fn)}
    kinds = small if GPU else {**small, "sparse": x.to_sparse(), "quantised": torch.quantize_per_tensor(x, 1.0, 0, torch.qint8)}
    for kind, tensor in kinds.items():
        for name, call in CALLS.items():
            assert outcome(call, tnn, tensor) in ("NotImplementedError", "RuntimeError"), f"{name}, {kind}"


@like_torch(104, "sizes as lists, as torch.Size, as single numbers in a list")
def _(nn: Any) -> Any:
    x, w = integers(1, 4, 6, 6), integers(6, 4, 3, 3)
    return [
        nn.conv2d(x, w, stride=[2], padding=[1, 0], dilation=torch.Size([1, 2])),
        nn.max_pool2d(x, [3], [2], torch.Size([1, 1])),
        nn.avg_pool2d(x, (2,), padding=[1]),
        nn.adaptive_avg_pool2d(x, torch.Size([2, 3])),
        nn.interpolate(x, torch.Size([3, 4])),
        outcome(nn.max_pool2d, x, (1, 2, 3)),
        outcome(nn.conv2d, x, w, stride="2"),
    ]


@like_torch(104, "sizes as NumPy integers or tensors")
def _(nn: Any) -> Any:
    x, w, w_t = integers(1, 4, 6, 6), integers(6, 4, 3, 3), integers(4, 6, 3, 3)
    return [
        (
            nn.conv2d(x, w, stride=two, padding=(two, 1), dilation=[two, 1]),
            nn.conv2d(x, integers(4, 2, 3, 3), groups=two),
            nn.conv_transpose2d(x, w_t, stride=(two, 3), output_padding=(0, two)),
            nn.max_pool2d(x, two, two, dilation=(1, two)),
            nn.avg_pool2d(x, (two, 3), divisor_override=two),
            nn.adaptive_avg_pool2d(x, (two, None)),
            nn.adaptive_max_pool2d(x, (3, two)),
            nn.interpolate(x, two),
            nn.interpolate(x, (two, 3), mode="area"),
        )
        for two in (numpy.int64(2), numpy.int32(2), torch.tensor(2))
    ] + [nn.interpolate(x, scale_factor=factor) for factor in (numpy.float64(1.5), numpy.float32(1.5), numpy.int64(2))]


@like_torch(104, "sizes other than integers, factors other than finite numbers")
def _(nn: Any) -> Any:
    x, w = integers(1, 4, 6, 6), integers(4, 2, 3, 3)
    return (
        [
            (
                outcome(nn.conv2d, x, w, groups=wrong),
                outcome(nn.conv2d, x, w, stride=wrong, groups=2),
                outcome(nn.conv_transpose2d, x, w, padding=wrong, groups=wrong),
                outcome(nn.max_pool2d, x, 2, wrong),
                outcome(nn.avg_pool2d, x, (wrong, 2)),
                outcome(nn.avg_pool2d, x, 2, divisor_override=wrong),
                outcome(nn.adaptive_avg_pool2d, x, wrong),
                outcome(nn.adaptive_max_pool2d, x, (wrong, 2)),
                outcome(nn.interpolate, x, wrong),
                outcome(nn.interpolate, x, (wrong, 2)),
            )
            for wrong in (True, 2.0, "2", numpy.float64(2), torch.tensor(2.0))
        ]
        + [
            outcome(nn.interpolate, x, scale_factor=factor, recompute_scale_factor=again)
            for factor in (float("nan"), float("inf"), (1.0, -float("inf")))
            for again in (None, False, True)
        ]
        + [outcome(nn.interpolate, x, scale_factor=factor) for factor in (torch.tensor(2.0), "2", (1.0, "2"))]
    )


@like_torch(105, "no_grad, and an optimizer that updates parameters in place")
def _(nn: Any) -> Any:
    conv = filled(nn.Conv2d(4, 4, 3, padding=1))
    x = integers(2, 4, 4, 4)
    with torch.no_grad():
        y = conv(x)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.5)
    for _step in range(2):
        optimizer.zero_grad()
        conv(x).sum().backward()
        optimizer.step()
    return y, y.requires_grad, [p.detach() for p in conv.parameters()]


@holds(106, "autocast lowers exactly the operators that torch lowers")
def _() -> None:
    torch.use_deterministic_algorithms(False)  # else torch on a GPU resizes by a decomposition
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = integers(1, 4, 4, 4, dtype=dtype)
        for name, call in CALLS.items():
            with torch.autocast(DEVICE, torch.bfloat16):
                results = [outcome(call, nn, x) for nn in (tnn, TORCH)]
            got, expected = (y.dtype if isinstance(y, Tensor) else y for y in results)
            assert got == expected, f"{name}, {dtype}: {got}, torch has {expected}"


@like_torch(107, "strides, padding and dilation far larger than the image")
def _(nn: Any) -> Any:
    x, w, w2, far = integers(1, 4, 5, 6), integers(3, 4, 1, 1), integers(3, 4, 2, 2), 2**28
    return (
        grads(nn.conv2d, x, w, stride=far),
        grads(nn.conv2d, x, w, stride=far, padding=far),
        grads(nn.conv2d, x, w2, stride=far, padding=far, dilation=far),
        grads(nn.conv2d, x, integers(4, 1, 2, 2), stride=far, padding=far, dilation=far, groups=4),
        grads(nn.conv_transpose2d, integers(1, 4, 2, 2), integers(4, 3, 2, 2), stride=far, padding=far // 2),
        grads(nn.max_pool2d, x, 2, stride=far),
        grads(nn.avg_pool2d, x, 2, stride=far, ceil_mode=True),
        refusal(nn.max_pool2d, x, 2, dilation=2**31 - 1),
        refusal(nn.max_pool2d, x, 2, stride=2**31),
    )


@holds(107, "geometry of 2^29 pixels and more raises an error")
def _() -> None:
    x, w = integers(1, 4, 5, 6), integers(3, 4, 1, 1)
    for options in ({"stride": 2**29}, {"padding": 2**31}, {"dilation": 2**40}):
        assert refusal(tnn.conv2d, x, w, words="less than 2^29", **options) == "RuntimeError"
