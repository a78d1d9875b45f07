"""torch's tools applied to a trinn model: the result has the outputs and gradients of the model."""

import copy
import io
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.networks import step
from tests.support.operator_cases import CASES, results
from trinn.kernels import ops
from trinn.models import LeNet

a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))), reason="Inductor: there is no C++ compiler"
)
only_on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs: there is no GPU")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.usefixtures("full_float32", "large_tiles"),
]


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(training: bool = True) -> nn.Sequential:
    """Almost every kind of layer, and fused ones."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        tnn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), tnn.BatchNorm2d(4), tnn.ReLU(inplace=True),
        tnn.ConvTranspose2d(4, 3, 2, stride=2), tnn.AvgPool2d(2), tnn.Upsample(scale_factor=2, mode="bilinear"),
        tnn.ConvBNActivation2d(tnn.Conv2d(3, 3, 3), tnn.BatchNorm2d(3), tnn.ReLU()), tnn.MaxPool2d(2), tnn.AdaptiveAvgPool2d(2),
        nn.Flatten(), tnn.LinearActivation(tnn.Linear(12, 6), tnn.ReLU()), tnn.Linear(6, 3),
    )  # fmt: skip
    return layers.to(DEVICE).train(training)


def images(count: int = 2) -> Tensor:
    return randn(count, 2, 6, 6)


def same_step(call: Callable[[Tensor], Any], module: nn.Module, x: Tensor, model: nn.Module | None = None) -> None:
    """Assert that a step by `call`, with the module's parameters, equals an eager step of a copy of `model` (or `module`)."""
    twin = copy.deepcopy(model if model is not None else module)
    torch.testing.assert_close(step(call, module, x), step(twin, twin, x), rtol=1e-4, atol=1e-5)
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=[pytest.mark.long, a_compiler])])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_compile(backend: str, training: bool, fresh_dynamo: None) -> None:
    model = network(training)
    same_step(torch.compile(model, backend=backend, fullgraph=True), model, images())


@a_compiler
def test_inductor(fresh_dynamo: None) -> None:
    """The smallest step through the whole of torch.compile."""
    model = nn.Sequential(tnn.Conv2d(2, 3, 3), tnn.ReLU()).to(DEVICE)
    same_step(torch.compile(model, fullgraph=True), model, images())


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    model, x = network(training=False), images()
    program = torch.export.export(model, (x,), strict=strict)
    assert torch.equal(program.module()(x), model(x))
    targets = {node.target for node in program.run_decompositions().graph.nodes}
    wanted = ("conv2d_fprop", "batchnorm2d_forward", "linear_fprop")
    assert {getattr(torch.ops.trinn, name).default for name in wanted} <= targets
    assert torch.ops.trinn.activation_forward.default not in targets


def test_export_of_many_sizes() -> None:
    model = nn.Sequential(tnn.Conv2d(2, 3, 3, stride=2, padding=1), tnn.ReLU(), tnn.AdaptiveAvgPool2d(2)).to(DEVICE).eval()
    sizes = {0: torch.export.Dim("images", min=1, max=64), 2: torch.export.Dim("height", min=4, max=64)}
    program = torch.export.export(model, (images(),), dynamic_shapes=(sizes,))
    x = randn(5, 2, 13, 6)
    with torch.no_grad():
        assert torch.equal(program.module()(x), model(x))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode: Any) -> None:
    """The traced graph has forward and backward."""
    model = network(training=False)

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).square().sum(), x)[0]

    graph = make_fx(gradient, tracing_mode=mode, _allow_non_fake_inputs=True)(images())
    assert torch.equal(graph(images()), gradient(images()))


def test_fx() -> None:
    """Each trinn layer is a node, and the traced module trains like the model."""
    model = network()
    traced = torch.fx.symbolic_trace(model)
    assert model[1].num_batches_tracked == 0
    for again in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        same_step(again, again, images(), model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [str(i) for i in range(len(model))]
    torch.fx.symbolic_trace(LeNet())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated:DeprecationWarning")
def test_jit_trace_is_refused() -> None:
    with pytest.raises(RuntimeError, match="torch.export"):
        torch.jit.trace(network(training=False), images())


class Calls(TorchDispatchMode):
    """The first call of each of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "trinn" and func._opname not in self.first:
            copied = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
            self.first[func._opname] = func, copied, dict(kwargs or {})
        return func(*args, **kwargs or {})


def calls() -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    with Calls() as seen:
        for case in CASES.values():
            results(case, case.tensors(), case.others())
        tnn.relu_(images())
        tnn.add_(images(), images())
        ops.channel_scale_activation_backward(images(), images(), images()[:, :, 0, 0], None, "relu", 1)
        tnn.batch_norm(images(), randn(2), randn(2).abs(), training=True)
        ops.batchnorm2d_merge(randn(3, 4), randn(3, 4).abs(), torch.ones(3, device=DEVICE))
        ops.batchnorm2d_backward(images(), images(), randn(2), randn(2).abs(), None, randn(2, 2), 1e-5, randn(1).abs())
        ops.batchnorm2d_activation_sums(
            images(), images(), images(), None, randn(2), randn(2).abs(), None, None, None, "relu", 1e-5
        )
        with torch.no_grad():
            tnn.ConvBNActivation2d(tnn.Conv2d(2, 3, 1), tnn.BatchNorm2d(3).eval(), tnn.ReLU()).to(DEVICE)(images())
    return seen.first


@pytest.mark.parametrize(
    "checks",
    [
        pytest.param(("test_schema", "test_autograd_registration", "test_faketensor"), id="quick"),
        pytest.param("test_aot_dispatch_dynamic", id="compiled", marks=pytest.mark.long),
    ],
)
def test_opcheck(checks: str | tuple[str, ...]) -> None:
    """OperatorCase operator: its schema, its dispatch, its fake twin and its use in a compiled graph."""
    found = calls()
    assert found.keys() == vars(ops).keys(), found.keys() ^ vars(ops).keys()
    for op, args, kwargs in found.values():
        torch.library.opcheck(op, args, kwargs, test_utils=checks)


@pytest.mark.parametrize("where", ["fake", "meta"])
def test_without_data(where: str) -> None:
    """Outputs, gradients and second gradients have the shapes, dtypes and strides of a real run."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    without_data = mode.from_tensor if where == "fake" else partial(Tensor.to, device="meta")
    for name, case in CASES.items():
        real = results(case, case.tensors(), case.others())
        tensors, others = [without_data(t) for t in case.tensors()], tuple(without_data(t) for t in case.others())
        with mode if where == "fake" else nullcontext():
            got = results(case, tensors, others)
        for key, value in real.items():
            found = got[key]
            assert (found.shape, found.dtype, found.stride()) == (value.shape, value.dtype, value.stride()), f"{name}: {key}"


def test_grad_scaler() -> None:
    """A step with an infinite gradient is skipped and the scale is halved; the next step is done."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
    before = copy.deepcopy(model.state_dict())
    for factor, changes in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            loss = model(images()).float().mean() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.get_parameter("0.weight"), before["0.weight"]) != changes
    assert scaler.get_scale() == 2.0**9


def test_per_sample_gradients() -> None:
    """LeNet's gradients per sample by vmap of grad equal a loop's, without a warning."""
    model = LeNet(num_classes=3).to(DEVICE)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x, labels = randn(2, 1, 32, 32), torch.tensor([2, 0], device=DEVICE)

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (image[None],)), label[None])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
        got = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)
    each = [torch.func.grad(loss)(parameters, image, label) for image, label in zip(x, labels, strict=True)]
    torch.testing.assert_close(got, {name: torch.stack([e[name] for e in each]) for name in got}, rtol=1e-4, atol=1e-6)


def test_hessian() -> None:
    """Forward over reverse, reverse over reverse, reverse over forward and forward over forward agree."""
    model = nn.Sequential(tnn.Conv2d(1, 2, 2), tnn.BatchNorm2d(2), tnn.ReLU(inplace=True), nn.Flatten(), tnn.Linear(8, 1))
    model = model.to(DEVICE).double().eval()

    def number(x: Tensor) -> Tensor:
        return model(x.tanh().reshape(1, 1, 3, 3)).square().sum()

    x = randn(9, dtype=torch.float64)
    inner, outer = (torch.func.jacrev, torch.func.jacfwd), (torch.func.jacrev, torch.func.jacfwd)
    found = [o(i(number))(x) for i in inner for o in outer]
    torch.testing.assert_close(torch.func.hessian(number)(x), found[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert found[0].abs().max() > 1e-3


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant: bool) -> None:
    model = network(training=False)
    same_step(lambda x: checkpoint(model, x, use_reentrant=reentrant), model, images())


def test_saved_tensors_hooks() -> None:
    """OperatorCase saved tensor passes through the hooks, which may move it, and only needed tensors are saved."""
    model, packed = network(), []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.shape)
        return tensor.cpu()

    def kept(x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.to(DEVICE)):
            return model(x)

    same_step(kept, model, images())
    # Convolution 2, batch norm 4, ReLU 1 (its result), transposed convolution 2, ConvBNActivation2d 2 + 5, max pooling 1
    # (argmax codes), LinearActivation 3, linear 2. The other layers save nothing.
    assert len(packed) == 22


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (tnn.Conv2d(2, 3, 2), (2, 2, 4, 4)), (tnn.BatchNorm2d(2), (2, 2, 4, 4)), (tnn.BatchNorm1d(2), (3, 2, 4)),
        (tnn.BatchNorm1d(2), (3, 2)), (tnn.Linear(4, 3), (3, 4)), (tnn.Linear(4, 3, bias=False), (2, 3, 4)),
        (tnn.AvgPool2d(2), (2, 2, 4, 4)), (tnn.Upsample(scale_factor=2), (2, 2, 4, 4)),
    ],
)  # fmt: skip
def test_a_hook_before_an_in_place_relu(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The hook gets the gradient of the layer's output."""
    y = layer.to(DEVICE)(randn(*shape).requires_grad_())
    seen: list[Tensor] = []
    y.register_hook(seen.append)
    before = y.detach().clone()
    tnn.relu_(y).sum().backward()
    assert len(seen) == 1 and torch.equal(seen[0], (before > 0).float())


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies(how: str) -> None:
    model = network()

    def saved(module: nn.Module) -> nn.Module:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)

    copied = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved}[how](model)
    assert repr(copied) == repr(model) and isinstance(copied[0], tnn.Conv2d)
    same_step(copied, copied, images(), model)


def test_state_dict_by_weights_only() -> None:
    model, buffer = network(), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    fresh = network()
    nn.init.zeros_(fresh.get_parameter("0.weight"))
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_lazy_modules() -> None:
    """The first call turns lazy modules into trinn layers, with torch's parameters and outputs."""
    models = []
    for source in (tnn, nn):
        lazy = nn.Sequential(
            source.LazyConv2d(4, 3), source.LazyBatchNorm2d(), source.LazyConvTranspose2d(2, 2),
            nn.Flatten(), source.LazyLinear(3), source.LazyBatchNorm1d(),
        ).to(DEVICE)  # fmt: skip
        torch.manual_seed(0)
        lazy(images(3))
        models.append(lazy)
    ours, torchs = models
    assert [type(m) for m in ours] == [
        tnn.Conv2d, tnn.BatchNorm2d, tnn.ConvTranspose2d, nn.Flatten, tnn.Linear, tnn.BatchNorm1d
    ]  # fmt: skip
    same_step(ours, ours, images(3), torchs)


@pytest.mark.parametrize("fuse", [fuse_conv_bn_eval, fuse_linear_bn_eval])
@torch.no_grad()
def test_fusion(fuse: Callable[..., nn.Module]) -> None:
    """torch's fusion of a batch norm into the layer before it returns a trinn layer."""
    layer, norm, x = {
        fuse_conv_bn_eval: (tnn.Conv2d(2, 4, 3), tnn.BatchNorm2d(4), images()),
        fuse_linear_bn_eval: (tnn.Linear(6, 4), tnn.BatchNorm1d(4), randn(5, 6)),
    }[fuse]
    both = nn.Sequential(layer, norm).to(DEVICE)
    both(x)  # changes the running statistics
    fused = fuse(*both.eval())
    assert type(fused) is type(layer)
    torch.testing.assert_close(fused(x), both(x), rtol=1e-4, atol=1e-5)


def test_channels_last() -> None:
    """A model in channels_last has outputs and gradients in channels_last, with the same values."""
    model = network()[:9]
    twin: Any = copy.deepcopy(model)
    twin.to(memory_format=torch.channels_last)
    seen: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output)
        output.register_hook(seen.append)

    for layer in twin:
        layer.register_forward_hook(hook)
    same_step(twin, twin, images(3).to(memory_format=torch.channels_last), model)
    assert len(seen) == 18
    for tensor in seen:
        assert tensor.is_contiguous(memory_format=torch.channels_last), tensor.shape


@only_on_a_gpu
def test_reduce_overhead(fresh_dynamo: None) -> None:
    """CUDA graphs: warm-up, capture and replay."""
    model = network()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for seed in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        same_step(compiled, model, randn(2, 2, 6, 6, seed=seed))


@only_on_a_gpu
def test_graphed_callables() -> None:
    model, twin = network(training=False), network(training=False)
    graphed: Any = torch.cuda.make_graphed_callables(model, (images().requires_grad_(),))
    for seed in range(2):
        same_step(graphed, model, randn(2, 2, 6, 6, seed=seed), twin)
