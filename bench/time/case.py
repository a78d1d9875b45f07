"""Measure one case: run both sides on the same inputs, check against float64, time, and return one row per pass."""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench import tf32
from bench.registry import SIDES, Case
from bench.time.protocol import LEAST, ROUNDS, Call, Machine, interleaved, using
from bench.workers import words

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Results = dict[str, Tensor]


class Contender(NamedTuple):
    """One timed implementation: side ("ours" or "torch"), mode ("eager", "graphed" or "compiled"), memory format."""

    side: str
    mode: str
    layout: str


def layouts_of(case: Case) -> list[str]:
    """Return the memory formats of a case: both if its inputs are images."""
    return [name for name in LAYOUTS if name == "contiguous" or all(len(shape) == 4 for shape in case.inputs)]


class Instance:
    """One side of a case with random tensors, rounded to `dtype`: the same values for both sides and all memory formats.

    `exact` computes in float64 with the rounded values.
    """

    def __init__(
        self, case: Case, side: str, dtype: torch.dtype, layout: str, device: str, seed: int = 0, exact: bool = False
    ) -> None:
        self.case, self.dtype, self.seed = case, dtype, seed
        torch.manual_seed(seed)
        with torch.device(device):
            module = case.make(SIDES[side])
            inputs = [torch.randn(shape) + 0.25 for shape in case.inputs]  # nonzero mean: its relative error is defined
        with torch.no_grad():
            for norm in (part for part in module.modules() if isinstance(part, _BatchNorm)):
                norm.weight.uniform_(0.5, 1.5)  # by default all weights and biases are equal
                norm.bias.normal_()
        self.module, self.inputs = cast(module, inputs, dtype, layout, exact)
        if not case.first:
            for x in self.inputs:
                x.requires_grad_()

    def upstream(self, y: Tensor) -> Tensor:
        """Return a random output gradient with the strides of the output."""
        torch.manual_seed(self.seed + 1)
        return torch.empty_like(y).copy_(torch.randn(y.shape, device=y.device).to(self.dtype))

    def wanted(self, what: str) -> Results:
        """Return the tensors whose gradients a pass computes."""
        inputs = {f"input {i}": x for i, x in enumerate(self.inputs) if x.requires_grad and what != "wgrad"}
        return inputs | (dict(self.module.named_parameters()) if what != "dgrad" else {})

    def call(self, what: str, function: Callable[..., Tensor] | None = None) -> Call:
        """Return a pass as a repeatable call. `what` is the name of the pass. `function` replaces the module."""
        function = function or self.module
        self.module.train(what != "inference")
        if what == "inference":
            return partial(torch.no_grad()(function), *(x.detach() for x in self.inputs))
        if what == "forward":
            return partial(function, *self.inputs)
        wanted = list(self.wanted(what).values())
        if what == "training":
            with torch.no_grad():
                dy = self.upstream(self.module(*self.inputs))
            return lambda: torch.autograd.grad(function(*self.inputs), wanted, dy)
        # A Function computes every gradient enabled at its forward call, even if torch.autograd.grad requests fewer.
        others = [t for t in self.wanted("training").values() if all(t is not w for w in wanted)]
        for tensor in others:
            tensor.requires_grad_(False)
        y = function(*self.inputs)
        for tensor in others:
            tensor.requires_grad_()
        return partial(torch.autograd.grad, y, wanted, self.upstream(y), retain_graph=True)

    def results(self) -> Results:
        """Return the output, all gradients, the updated running statistics and the inference output."""
        y = self.module(*self.inputs)
        wanted = self.wanted("training")
        found = {"output": y.detach()}
        found |= zip(wanted, torch.autograd.grad(y, list(wanted.values()), self.upstream(y)), strict=True)
        found |= {name: b.to(y.dtype, copy=True) for name, b in self.module.named_buffers() if b.is_floating_point()}
        if "inference" in self.case.works:
            found["inference"] = self.call("inference")()  # type: ignore[assignment]
            self.module.train()
        return found


def cast(
    module: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype, layout: str, exact: bool
) -> tuple[nn.Module, list[Tensor]]:
    """Convert a module and its inputs to a dtype and a memory format; with `exact`, then to float64.

    Batch norms stay in float32 if the dtype has 16 bits.
    """
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.is_floating_point() and not (isinstance(part, _BatchNorm) and dtype.itemsize == 2):
                tensor.data = tensor.data.to(dtype)
    format = LAYOUTS[layout]
    module = module.to(memory_format=format)  # type: ignore[call-overload]
    inputs = [x.to(dtype).contiguous(memory_format=format) if x.dim() == 4 else x.to(dtype) for x in inputs]
    return (module.double(), [x.double() for x in inputs]) if exact else (module, inputs)


class Errors(NamedTuple):
    """Errors of a result: distances from the float64 result."""

    ours: float
    torch: float
    ulp: float  # not a distance: one unit in the last place of the largest element
    truncated: float = 0.0  # of float64 products with operands truncated to TF32; nonzero only where torch allows TF32

    @property
    def strictly_right(self) -> bool:
        """Whether our error is at most twice torch's plus one ulp. False for NaN."""
        return self.ours <= 2 * self.torch + self.ulp

    @property
    def right(self) -> bool:
        """The rule of tests/support/check.py: strictly right, or within the error of truncation to TF32 (bench/tf32.py)."""
        return self.strictly_right or self.ours <= self.truncated + self.torch + self.ulp


def errors_of(got: Tensor, expected: Tensor, exact: Tensor, truncated: Tensor | None = None, norm: float = math.inf) -> Errors:
    """Return the errors of one result in a norm, by default the largest element. Ours is infinite if the dtypes differ."""

    def size(tensor: Tensor) -> float:
        return float(torch.linalg.vector_norm(tensor, norm))

    ours, torchs = (size(t.double() - exact) for t in (got, expected))
    if got.dtype != expected.dtype:
        ours = math.inf
    of_truncation = 0.0 if truncated is None else size(truncated - exact)
    return Errors(ours, torchs, torch.finfo(got.dtype).eps * size(exact), of_truncation)


def exact_results(case: Case, dtype: torch.dtype, device: str) -> tuple[Results, Results | None]:
    """Return torch's float64 results, and the float64 results with inputs truncated to TF32 where torch allows TF32."""
    return exactly(Instance(case, "torch", dtype, "contiguous", device, exact=True).results, dtype)


def exactly(results: Callable[[], Results], dtype: torch.dtype) -> tuple[Results, Results | None]:
    """Run a float64 computation as is, and with product inputs truncated to TF32 where torch allows TF32."""
    with cudnn_benchmark(False):
        exact = results()
        if dtype != torch.float32 or not tf32.is_allowed():
            return exact, None
        with tf32.Truncating():
            return exact, results()


def check(got: Results, expected: Results, exact: Results, truncated: Results | None = None) -> dict[str, Any]:
    """Compare our results and torch's with float64. Return errors, faults, and strides of ours that differ from torch's."""
    errors = {name: errors_of(ours, expected[name], exact[name], (truncated or {}).get(name)) for name, ours in got.items()}
    ours, torchs = (results["output"].stride() for results in (got, expected))
    return verdict(errors, f"output has strides {ours}, torch's {torchs}" if ours != torchs else None)


def verdict(errors: Mapping[str, Errors], strides: str | None = None) -> dict[str, Any]:
    """Return errors, faults in words, the results that are right only under truncation to TF32, and `strides`."""
    truncated = [name for name, e in errors.items() if e.right and not e.strictly_right]
    return {"errors": errors, "wrong": words_of(errors), "truncated": truncated, "strides": strides}


def words_of(errors: Mapping[str, Errors]) -> str | None:
    """Return the faults in words, or None."""
    wrong = ("{} is off by {:.2e}, torch's by {:.2e}, an ulp is {:.2e}".format(n, *e) for n, e in errors.items() if not e.right)
    return "; ".join(wrong) or None


def other_bits(got: Results, before: Results) -> str | None:
    """Return the results that differ in any bit from the checked ones, or None.

    The launch cache starts kernels from the second call on, so a timed call takes another path than the checked call.
    """
    others = [name for name, tensor in got.items() if not torch.equal(tensor, before[name])]
    return f"{', '.join(others)}: bits differ from the checked run" if others else None


@contextlib.contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Set cudnn.benchmark within the context."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def rows_of(
    case: Case, arithmetic: str, machine: Machine, passes: Sequence[str] = (), against: str = "eager", rounds: int = ROUNDS
) -> Iterator[dict[str, Any]]:
    """Yield one row for each pass, or each of `passes`. `against` is torch's mode, "eager" or "compiled".

    A contender with wrong results is not timed. A contender whose results change while it is timed gets no time.
    """
    with using(arithmetic) as dtype:
        layouts = layouts_of(case)

        def results(side: str, layout: str) -> Results:
            return Instance(case, side, dtype, layout, machine.device).results()

        exact = exact_results(case, dtype, machine.device)
        got = {layout: results("ours", layout) for layout in layouts}
        checked = {layout: check(got[layout], results("torch", layout), *exact) for layout in layouts}
        del exact
        modes = {"ours": "eager", "torch": against}
        contenders = right([Contender(side, modes[side], layout) for side in SIDES for layout in layouts], checked)
        sets = machine.sets(min(work.bytes(dtype.itemsize) for work in case.works.values()))
        for what in passes or case.works:
            work = case.works[what]
            calls = {c: partial(calls_of, case, c, what, dtype, machine.device, sets) for c in contenders}
            row = {
                "name": case.name, "op": case.op, "pass": what, "arithmetic": arithmetic, "against": against,
                "bytes": work.bytes(dtype.itemsize), "flops": work.flops,
                "sets": sets, "checked": checked, **timed(calls, machine, True, rounds, LEAST),
            }  # fmt: skip
            for layout in {time["layout"] for time in row["times"] if time["side"] == "ours"}:
                if wrong := other_bits(results("ours", layout), got[layout]):
                    row["checked"] = row["checked"] | {layout: checked[layout] | {"wrong": wrong}}
                    row["times"] = [t for t in row["times"] if (t["side"], t["layout"]) != ("ours", layout)]
            yield row


def right(contenders: Sequence[Contender], checked: Mapping[str, dict[str, Any]]) -> list[Contender]:
    """Return the contenders to time: all of torch's, and ours with right results."""
    return [c for c in contenders if c.side == "torch" or not checked[c.layout]["wrong"]]


def calls_of(case: Case, contender: Contender, what: str, dtype: torch.dtype, device: str, sets: int) -> list[Call]:
    """Return the calls of a pass, each with its own inputs, to rotate. In compiled mode they share one module."""
    instances = [Instance(case, contender.side, dtype, contender.layout, device, seed) for seed in range(sets)]
    if contender.mode != "compiled":
        return [instance.call(what) for instance in instances]
    module = instances[0].module
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    for instance in instances:
        instance.module = module
    return [instance.call(what, compiled) for instance in instances]


def timed(
    contenders: Mapping[Contender, Callable[[], Sequence[Call]]], machine: Machine, ahead: bool, rounds: int, least: float
) -> dict[str, Any]:
    """Time the contenders that can be prepared and called once. Return their times, and the errors of the others.

    Args:
        contenders: each with a function that prepares its calls.
        ahead: whether all calls of a sample are queued before the first starts (see protocol.py).
        least: seconds per sample.
    """
    torch._dynamo.reset()
    gc.collect()  # frees the tensors of earlier contenders
    ready: dict[Contender, Sequence[Call]] = {}
    failed = {}
    for contender, prepare in contenders.items():
        try:
            calls = prepare()
            calls[0]()
            ready[contender] = calls
        except Exception as error:  # torch, Triton and their compilers may raise anything
            failed[" ".join(contender)] = words(error)
    times = interleaved(ready, machine.clock, ahead, rounds, least) if ready else {}
    return {"times": [c._asdict() | spread._asdict() for c, spread in times.items()], "failed": failed}
