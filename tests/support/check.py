"""The rule of every operator's test: our error is at most twice torch's.

`check(ours, torchs, *tensors, **options)` calls both with the same inputs. It compares the outputs and every gradient with the
oracle: torch in float64 on the CPU. In each tensor, our largest error may be twice torch's error (same dtype, same device) plus
one unit in the last place of the largest value.

For float64 there is no finer oracle. Torch's error is then its float32 error on the same values, scaled by the ratio of the two
precisions, or, on a GPU, the difference between torch's float64 results there and on the CPU, if it is larger. Where torch's
flags allow TF32 on a GPU, our error may also be the error of exact products of operands truncated to TF32, plus torch's error;
bench/tf32.py has the reason.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bench import tf32

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# The smallest eps that torch's batch_norm accepts: 0 or, up to torch 2.12, a number too small to change a variance.
LEAST_EPS = 0.0 if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13) else 1e-300

Tensors = tuple[Tensor | None, ...]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values on the tested device: the same for every dtype, up to rounding."""
    generator = torch.Generator().manual_seed(seed + sum((i + 1) * s for i, s in enumerate(shape)))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def check(ours: Callable[..., Any], torchs: Callable[..., Any], *tensors: Tensor | None, **options: Any) -> None:
    """Assert equality of `ours` and `torchs`: shapes, dtypes, strides, values, and the gradients of all float inputs."""
    dtype = next(t.dtype for t in tensors if t is not None)
    check_results(run(ours, tensors, options, dtype), torchs, *tensors, **options)


def check_results(got: dict[str, Tensor], torchs: Callable[..., Any], *tensors: Tensor | None, **options: Any) -> None:
    """`check`, given the results of `run` for ours."""
    dtype = next(t.dtype for t in tensors if t is not None)
    expected = run(torchs, tensors, options, dtype)
    oracle = run(torchs, _converted(tensors, torch.float64, "cpu"), options, dtype)
    assert got.keys() == expected.keys(), f"{list(got)}, torch has {list(expected)}"
    if dtype == torch.float64:
        rounded = _converted(tensors, torch.float32, DEVICE)
        coarse = run(torchs, rounded, options, torch.float32)
        coarse_oracle = run(torchs, _converted(rounded, torch.float64, "cpu"), options, torch.float32)
        scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        # The second error is 0 on a CPU.
        errors = {name: (scale * error(coarse[name], coarse_oracle[name]), error(expected[name], oracle[name])) for name in got}
        allowed = {name: max(pair) for name, pair in errors.items()}
    else:
        allowed = {name: error(expected[name], oracle[name]) for name in got}
    if dtype == torch.float32 and truncates():
        with tf32.Truncating():
            truncated = run(torchs, _converted(tensors, torch.float64, "cpu"), options, dtype)
        allowed = {name: max(torchs, (error(truncated[name], oracle[name]) + torchs) / 2) for name, torchs in allowed.items()}
    for name in got:
        if name.startswith("output") and got[name].numel():
            assert got[name].stride() == expected[name].stride(), f"{name}: strides {got[name].stride()}"
        close(got[name], expected[name], oracle[name], allowed[name], name)


def truncates() -> bool:
    """Whether kernels may truncate the operands of float32 products to TF32."""
    return DEVICE == "cuda" and torch.version.hip is None and tf32.is_allowed()


def close(got: Tensor, expected: Tensor, oracle: Tensor, torchs_error: float, name: str) -> None:
    """Assert the rule for one tensor. Infinities, NaNs and integers must equal torch's."""
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, torch has {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{name}: {got.dtype}, torch has {expected.dtype}"
    assert got.device == expected.device, f"{name}: on {got.device}, torch has it on {expected.device}"
    if not got.is_floating_point():
        assert torch.equal(got, expected), f"{name}: differs in {int((got != expected).sum())} of {got.numel()} elements"
        return
    infinite = ~expected.isfinite()
    assert torch.equal(~got.isfinite(), infinite), f"{name}: not finite at other positions than torch"
    assert got[infinite].allclose(expected[infinite], equal_nan=True), f"{name}: a different infinity or NaN than torch"
    ulp = torch.finfo(got.dtype).eps * float(oracle[oracle.isfinite()].abs().max()) if oracle.isfinite().any() else 0.0
    ours = error(got, oracle)
    assert ours <= 2 * torchs_error + ulp, f"{name}: error {ours:.2e}, torch's {torchs_error:.2e}, one ulp {ulp:.2e}"


def error(result: Tensor, oracle: Tensor) -> float:
    """The largest difference from the oracle, where both are finite."""
    distance = (result.detach().cpu().double() - oracle.detach().double()).abs()
    return float(distance[distance.isfinite()].max()) if distance.isfinite().any() else 0.0


def run(function: Callable[..., Any], tensors: Tensors, options: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The outputs and the gradients of all float inputs, for an upstream gradient rounded to `dtype`."""
    inputs = [t.detach().requires_grad_(t.is_floating_point()) if t is not None else None for t in tensors]
    result = function(*inputs, **options)
    outputs = result if isinstance(result, tuple) else (result,)
    results = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    wanted = {f"gradient {i}": t for i, t in enumerate(inputs) if t is not None and t.requires_grad}
    differentiable = [y for y in outputs if y.requires_grad]
    if wanted and differentiable:
        upstream = [randn(*y.shape, dtype=dtype, seed=1).to(y.device, y.dtype) for y in differentiable]
        results |= zip(wanted, torch.autograd.grad(differentiable, list(wanted.values()), upstream), strict=True)
    return results


def _converted(tensors: Tensors, dtype: torch.dtype, device: str) -> Tensors:
    """The tensors on a device. Floating-point tensors get the dtype."""

    def converted(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return tuple(converted(t) if t is not None else None for t in tensors)


def on_a_cpu(torchs: Callable[..., Any]) -> Callable[..., Any]:
    """The function, computed on the CPU for tensors on a GPU, for operators whose CUDA kernels differ from the CPU's.

    Its results, and the gradients of its inputs, are on the GPU again. It runs in one thread: with more, the last of several
    writes to one position is undefined.
    """

    def function(*inputs: Any, **options: Any) -> Any:
        devices: list[torch.device] = []

        def moved(tensor: Tensor) -> Tensor:
            devices.append(tensor.device)
            return tensor.cpu() if tensor.is_cuda else tensor

        inputs, options = tree_map_only(Tensor, moved, (inputs, options))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = torchs(*inputs, **options)
        finally:
            torch.set_num_threads(threads)
        return tree_map_only(Tensor, lambda tensor: tensor.to(devices[0]), result)

    return function


def gradients(function: Callable[..., Any], *tensors: Tensor | None, **options: Any) -> list[Tensor]:
    """The gradients of all inputs, for an upstream gradient of ones: one expanded number."""
    inputs = [t.detach().requires_grad_() if t is not None else None for t in tensors]
    return list(torch.autograd.grad(function(*inputs, **options).sum(), [t for t in inputs if t is not None]))


def raises_like(torchs: Callable[..., Any], ours: Callable[..., Any], *inputs: Any, **options: Any) -> None:
    """Assert that both raise for these arguments: ours the type of torch's exception, with a message.

    If torch raises on the CPU but not on a GPU, ours must raise the CPU's exception on a GPU too.
    """
    with pytest.raises(Exception) as theirs:
        torchs(*inputs, **options)
        if DEVICE == "cuda":
            torchs = copy.deepcopy(torchs).cpu() if isinstance(torchs, nn.Module) else torchs
            on_a_cpu(torchs)(*inputs, **options)
    with pytest.raises(theirs.type) as raised:
        ours(*inputs, **options)
    assert len(str(raised.value)) > 10
