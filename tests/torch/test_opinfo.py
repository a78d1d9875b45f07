"""trinn on torch's own operator inputs (OpInfo): samples, gradients, second gradients, errors.

Each sample runs in float32, contiguous and strided, and its outputs, gradients and in-place changes are compared with torch.
In float64 it runs through gradcheck and gradgradcheck. `make test` runs a few samples, `make test-long` all of them. The
tolerance is from torch's own tests of these operators; tests/support/check.py has the tighter rule for trinn's own cases.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.record import Samples, table
from tests.support.torchs_material import OpInfo, SampleInput, op_db

pytestmark = [
    pytest.mark.usefixtures("full_float32"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.filterwarnings("ignore:.*nn.functional.upsample_.* is deprecated"),
]


def opinfos(name: str, variant: str = "", other: str = "") -> list[OpInfo]:
    """torch's OpInfos for a function of torch.nn.functional; a remark may follow the name."""
    wanted = other or f"nn.functional.{re.split(',| ', name)[0]}"
    return [info for info in op_db if (info.name, info.variant_test_name) == (wanted, variant)]


# trinn's functions with an OpInfo, and other OpInfos from the records of the operators.
SAMPLES: dict[str, Samples] = {name: Samples() for name in table("functions") if opinfos(name)} | table("samples")
INFOS = {name: opinfos(name, chosen.variant, chosen.info)[0] for name, chosen in SAMPLES.items()}
FUNCTIONS = {name: chosen.function or getattr(tnn, re.split(",| ", name)[0]) for name, chosen in SAMPLES.items()}


def samples(name: str, dtype: torch.dtype) -> tuple[list[SampleInput], int]:
    """torch's samples, and the number of samples left out."""
    torch.manual_seed(0)
    found = list(INFOS[name].sample_inputs(DEVICE, dtype, requires_grad=True))
    chosen = [sample for sample in found if SAMPLES[name].axes in (None, sample.input.dim())]
    return chosen, len(found) - len(chosen)


def fresh(value: Any) -> Any:
    """Copy the arguments: new leaves share the memory, other tensors are cloned."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_() if value.requires_grad else value.clone()
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(fresh(v) for v in value)
    return {key: fresh(v) for key, v in value.items()} if isinstance(value, dict) else value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors_of(v)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))


def run(function: Callable[..., Any], sample: SampleInput) -> dict[str, Any]:
    """The outputs, the gradients of all leaves, and the buffers after the call."""
    arguments = fresh([sample.input, list(sample.args), sample.kwargs])
    outputs = list(tensors_of(function(arguments[0], *arguments[1], **arguments[2])))
    leaves = [t for t in tensors_of(arguments) if t.requires_grad]
    roots = [y for y in outputs if y.requires_grad]
    upstream = [randn(*y.shape, dtype=y.dtype, seed=1).to(y.device) for y in roots]
    gradients = torch.autograd.grad(roots, leaves, upstream, allow_unused=True) if leaves and roots else ()
    return {
        "outputs": [y.detach() for y in outputs],
        "strides": [y.stride() for y in outputs if y.numel() > 0],
        "gradients": list(gradients),
        "buffers": [t for t in tensors_of(arguments) if not t.requires_grad],
    }


def equals_torch(name: str, sample: SampleInput) -> None:
    exact = SAMPLES[name].differentiable  # else the result depends on the order of writes, which is undefined on a GPU
    torchs_sample = sample if exact else sample.transform(lambda value: value.cpu() if isinstance(value, Tensor) else value)
    got = run(FUNCTIONS[name], sample)
    expected = run(INFOS[name].op, torchs_sample)
    assert got.pop("strides") == expected.pop("strides")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True, check_device=exact)


def equals_torch_strided(name: str, sample: SampleInput) -> None:
    equals_torch(name, sample.noncontiguous())


def differentiable(name: str, sample: SampleInput) -> tuple[Callable[..., Any], list[Tensor]]:
    """The operator as a function of its leaves, and the leaves."""
    arguments = [sample.input, list(sample.args), sample.kwargs]
    leaves = [t for t in tensors_of(arguments) if t.requires_grad]

    def replaced(value: Any, given: Iterator[Tensor]) -> Any:
        if isinstance(value, Tensor):
            return next(given) if value.requires_grad else value.clone()
        if isinstance(value, list):
            return [replaced(v, given) for v in value]
        return {k: replaced(v, given) for k, v in value.items()} if isinstance(value, dict) else value

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        x, args, kwargs = replaced(arguments, iter(inputs))
        return tuple(y for y in tensors_of(FUNCTIONS[name](x, *args, **kwargs)) if y.is_floating_point())

    return function, leaves


def first_derivative(name: str, sample: SampleInput) -> None:
    assert gradcheck(*differentiable(name, sample), fast_mode=True)


def second_derivative(name: str, sample: SampleInput) -> None:
    assert gradgradcheck(*differentiable(name, sample), fast_mode=True)


CHECKS: dict[str, tuple[torch.dtype, Callable[[str, SampleInput], None]]] = {
    "samples": (torch.float32, equals_torch),
    "strided": (torch.float32, equals_torch_strided),
    "gradchecks": (torch.float64, first_derivative),
    "gradgradchecks": (torch.float64, second_derivative),
}


def check_samples(name: str, check: str, chosen: Callable[[int], Sequence[int]], record: Any) -> None:
    """Check the samples with the chosen numbers, and record the counts of passed and of all samples."""
    dtype, checks = CHECKS[check]
    if checks in (first_derivative, second_derivative) and not SAMPLES[name].differentiable:
        pytest.skip("with overlapping windows the gradient is no derivative, also in torch")
    found, left_out = samples(name, dtype)
    numbers, failed = chosen(len(found)), []
    for number in numbers:
        try:
            checks(name, found[number])
        except Exception as error:
            failed.append((error, f"sample {number}, {found[number].summary()}: {error}"))
    record("torch's material", (name, check, len(numbers) - len(failed), len(found), left_out))
    if failed:
        raise AssertionError(f"{len(failed)} of {len(numbers)}:\n" + "\n".join(text for _, text in failed[:5])) from failed[0][
            0
        ]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("check, count", [("samples", 12), ("strided", 3), ("gradchecks", 1), ("gradgradchecks", 1)])
def test_some_samples(name: str, check: str, count: int, record_property: Any) -> None:
    """A fixed random choice of samples: every n-th sample would share an argument."""
    check_samples(name, check, lambda n: random.Random(0).sample(range(n), min(n, count)), record_property)


@pytest.mark.long
@pytest.mark.parametrize(
    "name, shard", [pytest.param(n, p, id=f"{n}-{p}") for n, chosen in SAMPLES.items() for p in range(chosen.shards)]
)
@pytest.mark.parametrize("check", CHECKS)
def test_all_samples(name: str, shard: int, check: str, record_property: Any) -> None:
    check_samples(name, check, lambda n: range(shard, n, SAMPLES[name].shards), record_property)


# torch's error texts about its own internals, and trinn's texts for the same errors.
OTHER_WORDS = {
    "internal error": "output_size must be 2",
    "Trying to create tensor with negative dimension": "elements of output_size must be greater than or equal to 0",
}


@pytest.mark.torchs_material
@pytest.mark.parametrize("name", SAMPLES)
def test_errors(name: str, record_property: Any) -> None:
    """Each of torch's error inputs raises torch's exception type and text."""
    info = INFOS[name]
    cases = list(info.error_inputs(torch.device(DEVICE))) if info.error_inputs_func is not None else []
    for case in cases:
        sample = case.sample_input
        with pytest.raises(case.error_type, match=OTHER_WORDS.get(case.error_regex, case.error_regex)):
            FUNCTIONS[name](sample.input, *sample.args, **sample.kwargs)
    if cases:
        record_property("torch's material", (name, "errors", len(cases), len(cases), 0))
