"""One case measured: both sides on the same numbers, checked against float64, then timed; a row for each of its passes."""

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
from bench.timing import LEAST, ROUNDS, Call, Machine, interleaved, using
from bench.workers import words

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Contender(NamedTuple):
    """Who is timed: "ours" or "torch", "eager", "graphed" or "compiled", and the memory format."""

    side: str
    mode: str
    layout: str


class Instance:
    """One side of a case with random numbers: the same for both sides and all memory formats, rounded to `dtype`.

    Batch norms keep float32 parameters in 16-bit arithmetic, as is the custom. `exact` computes with the rounded numbers in
    float64.
    """

    def __init__(
        self, case: Case, side: str, dtype: torch.dtype, layout: str, device: str, seed: int = 0, exact: bool = False
    ) -> None:
        self.case, self.layout = case, LAYOUTS[layout]
        torch.manual_seed(seed)
        with torch.device(device):
            module = case.make(SIDES[side])
            inputs = [torch.randn(shape) + 0.25 for shape in case.inputs]  # a mean of zero has no relative error
        randomized(module)
        self.module = cast(module, dtype).to(memory_format=self.layout)  # type: ignore[call-overload]
        self.inputs = [self.placed(x.to(dtype)) for x in inputs]
        if exact:
            self.module.double()
            self.inputs = [x.double() for x in self.inputs]
        if not case.first:
            for x in self.inputs:
                x.requires_grad_()
        self.dtype, self.seed = dtype, seed

    def placed(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=self.layout) if tensor.dim() == 4 else tensor

    def upstream(self, y: Tensor) -> Tensor:
        """A gradient for the output, in the memory order of the output."""
        torch.manual_seed(self.seed + 1)
        return torch.empty_like(y).copy_(torch.randn(y.shape, device=y.device).to(self.dtype))

    def wanted(self, what: str) -> dict[str, Tensor]:
        """The tensors by which a pass differentiates."""
        inputs = {f"input {i}": x for i, x in enumerate(self.inputs) if x.requires_grad and what != "wgrad"}
        return inputs | (dict(self.module.named_parameters()) if what != "dgrad" else {})

    def call(self, what: str, function: Callable[..., Tensor] | None = None) -> Call:
        """A pass, to be called as often as one likes; `function` is what runs in place of the module."""
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
        # A Function computes the gradients that a call of it was made to have, whichever of them torch is then asked for.
        others = [t for t in self.wanted("training").values() if all(t is not w for w in wanted)]
        for tensor in others:
            tensor.requires_grad_(False)
        y = function(*self.inputs)
        for tensor in others:
            tensor.requires_grad_()
        return partial(torch.autograd.grad, y, wanted, self.upstream(y), retain_graph=True)

    def results(self) -> dict[str, Tensor]:
        """The output and all gradients, statistics that moved, and the output of evaluation."""
        y = self.module(*self.inputs)
        wanted = self.wanted("training")
        found = {"output": y.detach()}
        found |= zip(wanted, torch.autograd.grad(y, list(wanted.values()), self.upstream(y)), strict=True)
        found |= {name: b.to(y.dtype, copy=True) for name, b in self.module.named_buffers() if b.is_floating_point()}
        if "inference" in self.case.works:
            call = self.call("inference")
            found["inference"] = call()  # type: ignore[assignment]
            self.module.train()
        return found


def randomized(module: nn.Module) -> None:
    """Give batch norms weights that are not all alike."""
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, _BatchNorm):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in a dtype, but for batch norms, which stay in float32 if that is of 16 bits."""
    for part in module.modules():
        parts = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        for tensor in parts:
            if tensor.is_floating_point() and not (isinstance(part, _BatchNorm) and dtype.itemsize == 2):
                tensor.data = tensor.data.to(dtype)
    return module


class Errors(NamedTuple):
    """Distances from float64: ours, torch's, a unit in the last place, and that of products of numbers cut to TF32."""

    ours: float
    torch: float
    ulp: float
    cut: float = 0.0  # where torch allows TF32

    @property
    def strictly_right(self) -> bool:
        """Whether ours is at most twice torch's, and a unit in the last place. NaN never is."""
        return self.ours <= 2 * self.torch + self.ulp

    @property
    def right(self) -> bool:
        """The same, or what tf32.py explains: the rule of tests/check.py."""
        return self.strictly_right or self.ours <= self.cut + self.torch + self.ulp


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def errors_of(
    got: Tensor, expected: Tensor, exact: Tensor, cut: Tensor | None = None, size: Callable[[Tensor], float] = largest
) -> Errors:
    """Those of one result, by its largest element or another size; ours is infinite in another dtype."""
    ours, torchs = (size(t.double() - exact) for t in (got, expected))
    if got.dtype != expected.dtype:
        ours = math.inf
    return Errors(ours, torchs, torch.finfo(got.dtype).eps * size(exact), size(cut - exact) if cut is not None else 0.0)


Results = dict[str, Tensor]


def exact_results(case: Case, dtype: torch.dtype, device: str) -> tuple[Results, Results | None]:
    """Those of torch in float64, and those of products of numbers cut to TF32, where torch allows that."""
    return exactly(Instance(case, "torch", dtype, "contiguous", device, exact=True).results, dtype)


def exactly(results: Callable[[], Results], dtype: torch.dtype) -> tuple[Results, Results | None]:
    """What computes in float64, as it is and with products of cut numbers."""
    with cudnn_benchmark(False):
        exact = results()
        if dtype != torch.float32 or not tf32.is_allowed():
            return exact, None
        with tf32.Cutting():
            return exact, results()


def check(got: Results, expected: Results, exact: Results, cut: Results | None = None) -> dict[str, Any]:
    """Our results and torch's against float64: errors, what is wrong with ours, and where its strides are not torch's."""
    errors = {name: errors_of(ours, expected[name], exact[name], cut[name] if cut else None) for name, ours in got.items()}
    ours, torchs = (results["output"].stride() for results in (got, expected))
    strides = f"output has strides {ours}, torch's {torchs}" if ours != torchs else None
    return verdict(errors) | {"strides": strides}


def verdict(errors: Mapping[str, Errors]) -> dict[str, Any]:
    """Errors, what is wrong in words, and what is right only since TF32 may be cut."""
    cut = [name for name, e in errors.items() if e.right and not e.strictly_right]
    return {"errors": errors, "wrong": words_of(errors), "cut": cut}


def other_bits(got: dict[str, Tensor], before: dict[str, Tensor]) -> str | None:
    """Which results differ at all from what was checked: from the third call on, operators start their kernels another way."""
    others = [name for name, tensor in got.items() if not torch.equal(tensor, before[name])]
    return f"{', '.join(others)}: other bits when timed than when checked" if others else None


def words_of(errors: Mapping[str, Errors]) -> str | None:
    """What is wrong, if something is."""
    wrong = ("{} is off by {:.2e}, torch's by {:.2e}, an ulp is {:.2e}".format(n, *e) for n, e in errors.items() if not e.right)
    return "; ".join(wrong) or None


@contextlib.contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Within, cuDNN tries its algorithms on each new shape, or does not."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def rows_of(
    case: Case, arithmetic: str, machine: Machine, passes: Sequence[str] = (), against: str = "eager", rounds: int = ROUNDS
) -> Iterator[dict[str, Any]]:
    """A row for each pass, or for those named, of ours against torch's, "eager" or "compiled".

    A contender that computes something wrong is not timed; one that did so when it was timed has no time.
    """
    with using(arithmetic) as dtype:
        layouts = [name for name in LAYOUTS if name == "contiguous" or all(len(shape) == 4 for shape in case.inputs)]

        def results(side: str, layout: str) -> dict[str, Tensor]:
            return Instance(case, side, dtype, layout, machine.device).results()

        exact, cut = exact_results(case, dtype, machine.device)
        got = {layout: results("ours", layout) for layout in layouts}
        checked = {layout: check(got[layout], results("torch", layout), exact, cut) for layout in layouts}
        del exact, cut
        contenders = [Contender(side, against if side == "torch" else "eager", x) for side in SIDES for x in layouts]
        contenders = [c for c in contenders if c.side == "torch" or not checked[c.layout]["wrong"]]
        sets = machine.sets(min(work.bytes(dtype.itemsize) for work in case.works.values()))
        instances = {c: instances_of(case, c, dtype, machine.device, sets) for c in contenders}
        for what, work in case.works.items():
            if passes and what not in passes:
                continue
            row: dict[str, Any] = {
                "name": case.name, "op": case.op, "pass": what, "arithmetic": arithmetic, "against": against,
                "bytes": work.bytes(dtype.itemsize), "flops": work.flops, "largest": case.largest * dtype.itemsize,
                "sets": sets, "checked": checked,
            }  # fmt: skip
            row |= timed({c: partial(calls_of, instances[c], c, what) for c in contenders}, machine, True, rounds, LEAST)
            for layout in {time["layout"] for time in row["times"] if time["side"] == "ours"}:
                if wrong := other_bits(results("ours", layout), got[layout]):
                    row["checked"] = row["checked"] | {layout: checked[layout] | {"wrong": wrong}}
                    row["times"] = [t for t in row["times"] if (t["side"], t["layout"]) != ("ours", layout)]
            if not work.flops and machine.device == "cuda":
                row["instructions"] = instruction_counts(case, arithmetic, what)
            yield row
        del instances
    gc.collect()


def instruction_counts(case: Case, arithmetic: str, what: str) -> dict[str, float]:
    """How many instructions the threads of a pass of ours execute in each memory format, where that can be told."""
    from bench import ahead

    found = {}
    for layout in LAYOUTS:
        with contextlib.suppress(Exception):  # whatever the compiler's tools may raise, the pass is measured
            found[layout] = ahead.instructions_of(case.name, arithmetic, layout, what)
    return found


def instances_of(case: Case, contender: Contender, dtype: torch.dtype, device: str, sets: int) -> list[Instance]:
    """Sets to rotate; what is compiled has one module for all of them, so that it is compiled once."""
    found = [Instance(case, contender.side, dtype, contender.layout, device, seed) for seed in range(sets)]
    if contender.mode == "compiled":
        for instance in found:
            instance.module = found[0].module
    return found


def calls_of(instances: Sequence[Instance], contender: Contender, what: str) -> list[Call]:
    function = None
    if contender.mode == "compiled":
        function = torch.compile(instances[0].module, fullgraph=True, dynamic=False)
    return [instance.call(what, function) for instance in instances]


def timed(
    contenders: Mapping[Contender, Callable[[], Sequence[Call]]], machine: Machine, ahead: bool, rounds: int, least: float
) -> dict[str, Any]:
    """The times of those that can be prepared and called once, and why the others cannot."""
    torch._dynamo.reset()
    ready: dict[Contender, Sequence[Call]] = {}
    failed = {}
    for contender, prepare in contenders.items():
        try:
            calls = prepare()
            calls[0]()
            ready[contender] = calls
        except Exception as error:  # whatever torch, Triton and their compilers may raise
            failed[" ".join(contender)] = words(error)
    times = interleaved(ready, machine.clock, ahead, rounds, least) if ready else {}
    return {"times": [c._asdict() | spread._asdict() for c, spread in times.items()], "failed": failed}
