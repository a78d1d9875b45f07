"""Where kernels run, error messages where they cannot run, and the launches of each pass."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trinn.layers as tnn
from tests.support.check import randn
from tests.support.import_orders import orders
from tests.support.operator_cases import CASES
from trinn.kernels import launchers
from trinn.kernels.runtime.interpreter import unfit_interpreter
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.layout import memory_order

ROOT = Path(__file__).resolve().parents[2]
CPU_TENSOR = """
import torch, trinn.layers
try:
    trinn.layers.relu(torch.ones(3))
except RuntimeError as error:
    print(error)
"""


def run(program: str, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cpu_tensor_without_the_interpreter() -> None:
    """There is no silent fallback: the error message names the remedy."""
    message = run(CPU_TENSOR, TRITON_INTERPRET="0")
    assert "CPU" in message and "TRITON_INTERPRET=1" in message


def test_cpu_tensor_beside_a_gpu() -> None:
    """The error message names the device to move the tensor to."""
    message = run("import torch; torch.cuda.is_available = lambda: True\n" + CPU_TENSOR)
    assert "cpu" in message and "torch sees a GPU: move it there" in message and "TRITON_INTERPRET=1" in message


ORDERS = ["Triton before trinn", "FlopCounterMode before trinn", "torch.compile after trinn", "TRITON_INTERPRET=0"]


@pytest.mark.parametrize("names", [ORDERS, pytest.param([], marks=pytest.mark.long)], ids=["a slice", "all"])
def test_every_order_of_imports(names: list[str]) -> None:
    """Without a GPU, kernels are interpreted whatever imports Triton first. If they cannot be, an error explains why."""
    program = f"import tests.support.import_orders as orders; orders.main({names})"
    found = json.loads(run(program, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"))
    assert len(found) == 1 + (len(names) or len(orders()))
    assert not any(found.values()), "\n".join(f"{name}\n{wrong}" for name, wrong in found.items() if wrong)


def test_interpreter_is_chosen_without_a_gpu() -> None:
    expected = "False" if torch.cuda.is_available() else "True"
    assert run("import trinn.kernels.runtime.launch as l; print(l.INTERPRETED)").strip() == expected


def test_an_interpreter_that_fails_with_this_numpy() -> None:
    """Triton 3.6 breaks with NumPy 2.4. A readable error replaces Triton's TypeError."""
    message = unfit_interpreter("3.6.0", "2.5.2")
    assert "Triton 3.6.0" in message and "NumPy 2.5.2" in message and "numpy<2.4" in message
    assert not unfit_interpreter("3.7.1", "2.5.2") and not unfit_interpreter("3.6.0", "2.3.5")


def test_observed_launches_do_not_run() -> None:
    """The compile report observes the real launchers on meta tensors, with the options of each launch."""
    observed = []
    x = torch.empty(2, 3, 9, 9, device="meta")
    with intercepted(lambda kernel, _, args, constants: observed.append((kernel, constants)), "sm_90"):
        launchers.conv2d_fprop(x, torch.empty(4, 3, 3, 3, device="meta"), None, (7, 7), (1, 1), (0, 0), (1, 1), 1)
    ((_, constants),) = observed
    assert constants["enable_fp_fusion"] is True and constants["PRECISION"] == "tf32"


def test_empty_tensor_launches_nothing() -> None:
    assert tnn.relu(randn(0)).shape == (0,)


class Kernels(TorchDispatchMode):
    """Record the names of trinn's operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "trinn":
            self.names.append(func.__name__.removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("pool,dtype", [(tnn.max_pool2d, torch.uint8), (tnn.adaptive_max_pool2d, torch.int32)])
def test_indices_on_request_alone(pool: Callable[..., Any], dtype: torch.dtype) -> None:
    """Max pooling saves 1 byte per output for backward, adaptive max pooling 4. int64 indices are computed only on request."""
    x = randn(2, 3, 6, 8).requires_grad_()
    for requested in (False, True):
        kept: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)  # noqa: B023
            return tensor

        with Kernels() as kernels, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = pool(x, 2, return_indices=requested)
        y = result[0] if requested else result
        assert [t.dtype for t in kept] == [dtype] and kept[0].shape == y.shape
        assert sum(name == "max_pool2d_pick" for name in kernels.names) == requested
        assert not requested or result[1].dtype == torch.int64


def test_merged_axis_without_axes_has_stride_0() -> None:
    """Merging no axes gives size 1 and stride 0. A stride of 1 would make the compiler assume unaligned rows."""
    x = randn(1, 4, 5, 6)
    assert memory_order(x, x, axes=[]) == ((1,), [(0,), (0,)])
    assert memory_order(x, axes=[3, 2, 1]) == memory_order(x) == ((120,), [(1,)])


X, W, B = (2, 4, 5, 5), (4, 4, 3, 3), (4,)
GRADIENTS = {
    "conv2d": (tnn.conv2d, (X, W, B), ("conv2d_dgrad", "conv2d_wgrad", "channel_sum")),
    "conv_transpose2d": (tnn.conv_transpose2d, (X, W, B), ("conv2d_fprop", "conv2d_wgrad", "channel_sum")),
    "linear": (tnn.linear, ((6, 8), (3, 8), (3,)), ("linear_dgrad", "linear_wgrad", "channel_sum")),
    "batch_norm": (
        lambda x, w, b: tnn.batch_norm(x, torch.zeros_like(w), torch.ones_like(w), w, b),
        (X, B, B),
        ("batchnorm2d_backward", "batchnorm2d_sums", "batchnorm2d_sums"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("wanted", range(3))
@pytest.mark.parametrize(("function", "shapes", "kernels"), [pytest.param(*row, id=name) for name, row in GRADIENTS.items()])
def test_unneeded_gradients_are_not_computed(
    function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], kernels: tuple[str, ...], wanted: int
) -> None:
    """If one gradient is needed, backward launches only its kernel."""
    tensors = [randn(*shape) for shape in shapes]
    y = function(*(t.requires_grad_(i == wanted) for i, t in enumerate(tensors)))
    with Kernels() as run:
        torch.autograd.grad(y, tensors[wanted], torch.ones_like(y))
    assert run.names == [kernels[wanted]]


class Others(TorchDispatchMode):
    """Record the names of other operators that run, that is, torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "trinn":
            self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


VIEWS = {"alias", "detach", "expand", "unbind", "unsqueeze", "view"}
COPIES = {"batch_norm": {"clone"}, "batch_norm, training": {"clone"}, "relu, in place": {"mul"}}
# Running statistics; `x * 1`; the input kept for backward; two gradients of one tensor.
COPIES |= {"silu, in place": {"clone", "mul"}, "conv2d, addition, SiLU": {"add"}}


@pytest.mark.parametrize("name", CASES)
def test_only_our_kernels_run(name: str) -> None:
    """In forward and backward torch only makes views: it computes nothing, and fills no unused gradient with zeros."""
    case = CASES[name]
    tensors = [t.requires_grad_() for t in case.tensors()]
    others = case.others()
    with Others() as run:
        result = case.function(*tensors, *others)
    y = result[0] if isinstance(result, tuple) else result
    dy = torch.ones_like(y)
    with run:
        torch.autograd.grad(y, tensors, dy)
    assert run.names <= VIEWS | COPIES.get(name, set())
