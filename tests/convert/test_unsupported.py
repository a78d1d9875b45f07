"""Each row of docs/unsupported.md raises the documented exception or has the documented effect."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import trinn
import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.operator_cases import CASES
from tests.support.record import Arguments, table
from trinn.models import LeNet

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's deprecation warnings

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    feature: effect
    for feature, effect in re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", (ROOT / "docs/unsupported.md").read_text(), re.M)
    if feature not in ("what", "---")
}
FUNCTIONS: dict[str, Arguments] = table("functions")
FLOATING = ("conv2d", "conv_transpose2d", "linear", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm")


def with_arguments(name: str, **options: Any) -> Callable[[Tensor], Any]:
    """A function as a function of its input. Its other floating-point arguments get the dtype of the input."""
    _, *others = FUNCTIONS[name].inputs().values()

    def call(x: Tensor) -> Any:
        converted = [t.to(x.dtype) if t.is_floating_point() and not x.is_quantized else t for t in others]
        return getattr(tnn, name)(x, *converted, **FUNCTIONS[name].options, **options)

    return call


CALLS = {name: with_arguments(name) for name in FUNCTIONS}
CALLS["interpolate, bilinear"] = with_arguments("interpolate", mode="bilinear")


def row(start: str) -> str:
    """The documented effect in the only row with this beginning."""
    (found,) = (feature for feature in ROWS if feature.startswith(start))
    return ROWS[found]


def assert_raises(effect: str, function: Callable[..., Any], *inputs: Any, words: str | None = None) -> None:
    """Assert an exception of a type in the documented effect."""
    with pytest.raises(Exception, match=words) as raised:
        function(*inputs)
    assert f"`{type(raised.value).__name__}`" in effect, repr(raised.value)


def image(name: str) -> Tensor:
    """The input of a function of CALLS."""
    return FUNCTIONS[name.partition(",")[0]].inputs()["input"]


class Own(nn.Module):
    """A user's module that calls one of our functions."""

    def forward(self, x: Tensor) -> Tensor:
        return tnn.relu(x)


@pytest.mark.parametrize("network", [LeNet(), tnn.ReLU(), tnn.relu, Own()], ids=["network", "module", "function", "user's"])
def test_torchscript(network: Any) -> None:
    effect = row("TorchScript")
    assert_raises(effect, torch.jit.script, network, words="trinn's layers; torch.export and torch.compile can")
    assert_raises(
        effect, torch.jit.trace, network, randn(1, 1, 32, 32), words="trinn's operators; torch.export and torch.compile can"
    )


def test_onnx(tmp_path: Path) -> None:
    def export() -> None:
        torch.onnx.export(LeNet(), (torch.ones(1, 1, 32, 32),), tmp_path / "lenet.onnx", dynamo=False)

    assert_raises(row("The ONNX exporter that traces"), export, words="torch.export and torch.compile can")


def test_onnx_default_exporter(tmp_path: Path) -> None:
    """The exporter translates an exported program and has no translation of trinn's operators; `trinn.revert` removes them."""
    network, images, path = LeNet().eval(), torch.ones(1, 1, 32, 32), tmp_path / "lenet.onnx"
    installed = importlib.util.find_spec("onnxscript") is not None

    def namespaces() -> set[str]:
        nodes = torch.export.export(network, (images,)).graph.nodes
        return {node.target.namespace for node in nodes if isinstance(node.target, torch._ops.OpOverload)}

    assert "trinn" in namespaces()
    if installed:
        assert_raises(
            row("The default ONNX exporter"), lambda: torch.onnx.export(network, (images,), path), words="No ONNX function"
        )
    trinn.revert(network)
    assert namespaces() == {"aten"}
    if installed:
        torch.onnx.export(network, (images,), path)
        assert path.exists()


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
def test_dtensor(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    mesh = init_device_mesh(DEVICE, (1,))
    for name, case in CASES.items():
        tensors = [DTensor.from_local(t, mesh, [Replicate()], run_check=False) for t in case.tensors()]
        with pytest.raises((NotImplementedError, RuntimeError), match="trinn") as raised:
            case.function(*tensors, *case.others())
        assert type(raised.value).__name__ in row("DTensor"), name


@pytest.mark.parametrize("name", CALLS)
def test_dtypes(name: str) -> None:
    assert_raises(row("Complex"), CALLS[name], image(name).to(torch.complex64), words="complex64")
    assert_raises(row("8-bit"), CALLS[name], image(name).to(torch.float8_e4m3fn), words="float8")


@pytest.mark.parametrize("name", FLOATING)
def test_integers(name: str) -> None:
    assert_raises(row("Integers"), CALLS[name], image(name).to(torch.int32), words="int32")


@pytest.mark.parametrize("name", CALLS)
def test_kinds_of_tensors(name: str) -> None:
    assert_raises(row("Quantised"), quantised(CALLS[name]), image(name).cpu())
    for kind in (Tensor.to_sparse, Tensor.to_mkldnn):
        assert_raises(row("Sparse"), CALLS[name], kind(image(name).cpu()))
    for layout in (torch.strided, torch.jagged):
        images = [torch.ones(*image(name).shape[1:]) for _ in range(2)]
        assert_raises(row("Nested"), CALLS[name], torch.nested.nested_tensor(images, layout=layout))


def quantised(call: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda x: call(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8))


def test_quantising_a_network() -> None:
    effect = row("Quantising a network")
    network = nn.Sequential(tnn.Conv2d(3, 4, 3), tnn.ReLU(), tnn.Linear(4, 5)).eval()
    assert_raises(effect, torch.ao.quantization.fuse_modules, network, [["0", "1"]], words="trinn")
    dynamic = torch.ao.quantization.quantize_dynamic(network, {nn.Linear, tnn.Linear})
    assert [type(layer) for layer in dynamic] == [tnn.Conv2d, tnn.ReLU, tnn.Linear]
    assert all(p.dtype == torch.float32 for p in dynamic.parameters())
    assert "our layers stay as they are" in effect


def test_missing_layers_and_modes() -> None:
    assert_raises(row("Layers that"), lambda: tnn.Conv3d, words="Conv3d")  # type: ignore[attr-defined]
    assert_raises(row("Other modes"), lambda: tnn.interpolate(randn(1, 1, 4, 4), size=5, mode="bicubic"), words="bicubic")


def test_a_cpu_without_the_interpreter() -> None:
    source = "import torch, trinn.layers as nn; nn.ReLU()(torch.ones(3))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    kind, _, words = done.stderr.splitlines()[-1].partition(": ")
    assert f"`{kind}`" in row("A CPU, where kernels are not interpreted") and "set TRITON_INTERPRET=1" in words


def test_rows_with_tests_elsewhere() -> None:
    """tests/operators/test_sync_batchnorm.py tests SyncBatchNorm's errors in two processes."""
    assert row("`SyncBatchNorm` over several processes") == "`NotImplementedError`"
    assert "`ValueError`" in row("Wrapping a `SyncBatchNorm` on a CPU in DDP")


def test_every_row_has_a_test() -> None:
    called = re.findall(r"\brow\(\"(.+?)\"\)", Path(__file__).read_text())
    assert len(ROWS) >= 15
    assert [feature for feature in ROWS if not any(feature.startswith(start) for start in called)] == []


def test_data_parallel() -> None:
    """A replica's forward still uses the layers of the original model, on their GPU."""
    model = trinn.convert(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), fuse=True)
    replica: Any = model._replicate_for_data_parallel()
    assert replica.forward.args[0] is model and "RuntimeError" in row("`nn.DataParallel`")
