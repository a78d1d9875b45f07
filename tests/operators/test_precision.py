"""float32 products obey torch's old and new TF32 flags, and every dot passes its precision."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trinn.kernels.device.precision import conv_precision, matmul_precision
from trinn.kernels.runtime.launch import intercepted

CUDA = torch.device("cuda", 0)
KERNELS = Path(__file__).resolve().parents[2] / "kernels"


@pytest.fixture
def hopper() -> Iterator[None]:
    with intercepted(lambda *_: None, "sm_90"):
        yield


@pytest.mark.usefixtures("hopper")
def test_torchs_defaults() -> None:
    """torch allows TF32 in convolutions and forbids it in matrix products."""
    assert conv_precision(torch.float32, CUDA) == "tf32"
    assert matmul_precision(torch.float32, CUDA) == "tf32x3"


@pytest.mark.usefixtures("hopper")
def test_old_flags() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = True
    assert conv_precision(torch.float32, CUDA) == "tf32x3"
    assert matmul_precision(torch.float32, CUDA) == "tf32"
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    assert conv_precision(torch.float32, CUDA) == "tf32"
    assert matmul_precision(torch.float32, CUDA) == "tf32x3"


@pytest.mark.usefixtures("hopper")
def test_new_flags() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert conv_precision(torch.float32, CUDA) == "tf32x3"
    assert matmul_precision(torch.float32, CUDA) == "tf32"


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_flags_affect_float32_only(dtype: torch.dtype) -> None:
    assert conv_precision(dtype, CUDA) == matmul_precision(dtype, CUDA) == "ieee"


@pytest.mark.parametrize("architecture", ["sm_75", "gfx942", "interpreter"])
def test_hardware_without_tf32(architecture: str) -> None:
    with intercepted(lambda *_: None, architecture):
        assert conv_precision(torch.float32, CUDA) == "ieee"


def test_dots_and_launches_pass_their_precision() -> None:
    """The only tl.dot has input_precision; launch.py launches all kernels, with enable_fp_fusion."""
    dots, fusions = [], []
    for path in KERNELS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.dot":
                dots.append((path.name, {k.arg for k in node.keywords}))
            if isinstance(node, ast.keyword) and node.arg == "enable_fp_fusion":
                fusions.append(path.name)
    assert [name for name, _ in dots] == ["precision.py"] and "input_precision" in dots[0][1]
    assert fusions == ["launch.py"]
