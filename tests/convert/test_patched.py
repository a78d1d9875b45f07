"""Inside `trinn.patched`, torch's functions run on trinn's kernels, whoever calls them."""

import threading
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import trinn
import trinn.layers as tnn
from tests.models.test_lenet import OnlyOurs
from tests.support.architectures import FunctionalLeNet
from tests.support.check import DEVICE, check, randn
from tests.support.networks import check_deep_network, passes
from tests.support.record import table
from trinn.layers.patched import FUNCTIONS


class Namespaces(TorchDispatchMode):
    """Records the namespaces of all operators called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.namespaces.add(func.namespace)
        return func(*args, **kwargs or {})


def runs_ours(call: Callable[[], Any]) -> bool:
    with Namespaces() as mode:
        call()
    return "trinn" in mode.namespaces


def _image() -> Tensor:
    return randn(2, 4, 6, 6)


CALLS: dict[str, Callable[[Tensor], Any]] = table("patched")
ATTENTION = nn.MultiheadAttention(6, 2).to(DEVICE)
# torch.nn.functional functions that call a patched function internally. `patched` is a TorchFunctionMode: it receives only the
# outer call, so these functions stay on torch's kernels.
LEFT_ON_TORCH: dict[str, Callable[[Tensor], Any]] = {
    "local_response_norm": lambda x: F.local_response_norm(x[0], 2),
    "lp_pool1d": lambda x: F.lp_pool1d(x[0], 2, 2),
    "lp_pool2d": lambda x: F.lp_pool2d(x, 3.0, 2, ceil_mode=True),
    "lp_pool3d": lambda x: F.lp_pool3d(x, 2, 2),
    "multi_head_attention_forward": lambda x: ATTENTION(x[0], x[1], x[0])[0],
    "tanhshrink": lambda x: F.tanhshrink(x),
}
# Exceptions. max_unpool1d calls a function of torch._C with the name of a patched function. linear_cross_entropy exists from
# torch 2.13 on.
NOT_LISTED = {"max_unpool1d", "linear_cross_entropy"}


@pytest.mark.filterwarnings("ignore:`nn.functional.upsample` is deprecated", "ignore:max_unpooling2d")
@pytest.mark.parametrize("name", CALLS)
def test_patched_calls(name: str, full_float32: None) -> None:
    """The results are torch's, and only trinn's kernels run."""
    call = CALLS[name]
    check(trinn.patched()(call), call, _image())
    with trinn.patched(), OnlyOurs() as mode:
        call(_image())
    assert any(operator.startswith("trinn::") for operator in mode.seen)
    assert not runs_ours(lambda: call(_image()))


def test_calls_covers_every_patched_function() -> None:
    covered = {name for name in vars(tnn)["__all__"] if name.islower() and hasattr(F, name)}
    assert covered <= {name.removeprefix("F.") for name in CALLS}
    assert {FUNCTIONS[getattr(F, name)] for name in covered} == {getattr(tnn, name) for name in covered}


@pytest.mark.parametrize("name", LEFT_ON_TORCH)
def test_calls_left_on_torch(name: str) -> None:
    x, call = _image(), LEFT_ON_TORCH[name]
    assert not runs_ours(lambda: trinn.patched()(call)(x))
    torch.testing.assert_close(trinn.patched()(call)(x), call(x), equal_nan=True)


def test_every_function_left_on_torch_is_listed() -> None:
    """LEFT_ON_TORCH has every torch.nn.functional function that reaches a patched function and is a single call to a mode."""

    def names(code: CodeType) -> set[str]:
        return {*code.co_names}.union(*(names(c) for c in code.co_consts if isinstance(c, CodeType)))

    named = {n: names(f.__code__) for n, f in vars(F).items() if isinstance(f, FunctionType) and f.__module__ == F.__name__}
    reached = {n for n, f in vars(F).items() if isinstance(f, Hashable) and f in FUNCTIONS}
    theirs = {n.strip("_") for n in reached}
    while more := {n for n, called in named.items() if called & reached and n not in reached}:
        reached |= more
    single_calls = {n for n in reached if n.strip("_") not in theirs and any("has_torch_function" in c for c in named[n])}
    assert single_calls - NOT_LISTED == LEFT_ON_TORCH.keys()


def test_unflatten_compiles() -> None:
    """torch.compile cannot trace `Tensor.unflatten` as a function."""
    torch._dynamo.reset()
    x, call = _image(), trinn.patched()(lambda x: F.relu(x.unflatten(1, (2, 2))))
    assert torch.equal(torch.compile(call, fullgraph=True, backend="eager")(x), call(x))


def test_a_generator() -> None:
    """The patch is active while the generator runs, after `send` and `throw` too, and inactive while its caller runs."""
    x = _image()

    @trinn.patched()
    def generator() -> Iterator[Any]:
        found = [runs_ours(x.relu)]
        try:
            found.append((yield) or runs_ours(x.relu))
            yield
        except ZeroDivisionError:
            found.append(runs_ours(x.relu))
            yield found
        finally:
            ended.append(runs_ours(x.relu))

    ended: list[bool] = []
    running = generator()
    next(running)
    assert not runs_ours(x.relu)
    running.send(None)
    assert running.throw(ZeroDivisionError()) == [True] * 3 and not runs_ours(x.relu)
    running.close()
    assert ended == [True] and not runs_ours(x.relu)


def test_async_functions_raise() -> None:
    async def function() -> None: ...

    async def generator() -> AsyncIterator[None]:
        yield

    for each in (function, generator):
        with pytest.raises(TypeError, match="async"):
            trinn.patched()(each)


class Patched(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @trinn.patched()
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class Plain(Patched):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def networks() -> tuple[FunctionalLeNet, FunctionalLeNet]:
    torch.manual_seed(0)
    ours = FunctionalLeNet(2).to(DEVICE)
    torchs = FunctionalLeNet(2).to(DEVICE)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def test_a_forward_with_function_calls(full_float32: None, large_tiles: None) -> None:
    """No torch kernel runs, forward or backward, with converted layers or without."""
    ours, torchs = networks()
    images = randn(2, 1, 28, 28)
    with trinn.patched(), OnlyOurs():
        unconverted = passes(ours, images)
    trinn.convert(ours)
    with pytest.raises(AssertionError, match="aten::relu|aten::threshold|aten::clamp"), OnlyOurs():
        passes(ours, images)
    with OnlyOurs():
        converted = passes(Patched(ours), images)
    assert all(torch.equal(a, b) for a, b in zip(converted.values(), unconverted.values(), strict=True))
    check_deep_network(Patched(ours), Plain(torchs), [randn(2, 1, 28, 28, seed=seed) for seed in range(3)])


def test_scope() -> None:
    """The patch ends with its block, also at an exception; it nests, and it does not affect other threads."""
    x = _image()
    with pytest.raises(ZeroDivisionError), trinn.patched():
        raise ZeroDivisionError
    assert not runs_ours(x.relu)
    mode = trinn.patched()
    with mode:
        with mode, trinn.patched():
            assert runs_ours(x.relu)
        assert runs_ours(x.relu)
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(runs_ours(x.relu)))
        thread.start()
        thread.join()
        assert found == [False]
    assert not runs_ours(x.relu)


def test_unsupported_calls() -> None:
    """A patched function raises for unsupported inputs; functions without a trinn version run on torch."""
    with trinn.patched():
        with pytest.raises(NotImplementedError, match="interpolate needs 4D input"):
            F.interpolate(randn(1, 1, 4), scale_factor=2)
        assert not runs_ours(lambda: F.hardshrink(_image())) and not runs_ours(lambda: F.max_pool1d(_image()[0], 2))


def test_compiles_in_one_graph() -> None:
    """The block may be outside or inside the compiled function. The plain function recompiles when the block begins."""

    def function(x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(x), 2)

    def within(x: Tensor) -> Tensor:
        with trinn.patched():
            return function(x)

    x = _image()
    graphs: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph

    for each, ours in ((function, False), (within, True), (trinn.patched()(function), True)):
        torch._dynamo.reset()
        graphs.clear()
        compiled = torch.compile(each, fullgraph=True, backend=backend)
        compiled(x)
        with trinn.patched():
            assert torch.equal(compiled(x), function(x))
        assert torch.equal(compiled(x), function(x))
        assert ["trinn" in code for code in graphs] == [ours, True]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    """A patch inside a checkpointed function is active again for the recomputation in the backward pass."""

    @trinn.patched()
    def function(x: Tensor) -> Tensor:
        return F.relu(F.avg_pool2d(x, 2))

    x = _image().requires_grad_()
    (expected,) = torch.autograd.grad(function(x).sum(), x)
    y = checkpoint(function, x, use_reentrant=reentrant)
    with OnlyOurs() as mode:
        y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, expected) and "trinn::avg_pool2d_forward" in mode.seen
