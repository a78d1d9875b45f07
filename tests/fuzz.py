"""Random cases of each operator: `make fuzz`.

The record of each operator (tests/operators/) has functions that draw, by hypothesis, a geometry, valid for torch or not, all
options, the dtype, the memory layout of the tensors and of the upstream gradient, and values with ties, zeros, NaN, infinities
and extremes. If torch raises, trinn must raise the same exception. Otherwise outputs, strides and all gradients must equal
torch's in float64. Only the differences in docs/differences.md are exempt.

A drawn case may have one or two elements, too few for the rule of support/check.py: torch may be exact by chance. So errors of
a few units in the last place are allowed as well, relative to the larger of the largest value and 1; for means of subnormal
values, relative to the smallest normal number.
"""

import argparse
import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import evidence
from tests.support.check import close, error, run
from tests.support.drawing import Drawing, DrawnCase, laid_out
from tests.support.record import records
from tests.support.tma import tma_everywhere
from trinn.kernels.runtime import settings as runtime
from trinn.kernels.runtime.interpreter import INTERPRETED


class Upstream(torch.autograd.Function):
    """The identity. Its backward copies the upstream gradient into another memory layout."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, layout: str) -> Tensor:
        ctx.layout = layout
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return laid_out(dy, ctx.layout), None


def with_upstream_layout(function: Callable[..., Any], layout: str) -> Callable[..., Any]:
    """The function, with the gradient of its first output in a memory layout."""

    def call(*tensors: Tensor | None, **options: Any) -> Any:
        result = function(*tensors, **options)
        if isinstance(result, tuple):
            return (Upstream.apply(result[0], layout), *result[1:])
        return Upstream.apply(result, layout)

    return call


OPERATORS: dict[str, Callable[[Drawing], DrawnCase]] = {
    draw.__name__: draw for record in records().values() for draw in record.draws
}


def agrees(name: str, data: st.DataObject) -> None:
    """Draw a case, and assert that trinn has torch's results or exception."""
    draw = Drawing(data)
    case = OPERATORS[name](draw)
    layout = draw.one_of(*draw.layouts)
    given_ = [(tuple(t.shape), t.stride(), t.dtype) if t is not None else None for t in case.tensors]
    note(f"{name}: {given_}, {case.options}, upstream gradient {layout}")
    torchs_exception = exception_of(case.torchs, case.tensors, case.options)
    if torchs_exception is None:
        try:
            return compare(case, layout)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            exact_exception = exception_of(case.torchs, in_float64(case), case.options)
            if type(exact_exception) is not type(error):
                raise
            return None  # torch raises in float64, so an exception is right
    try:
        case.ours(*case.tensors, **case.options)
    except type(torchs_exception):
        return
    except Exception as error:
        raise AssertionError(f"{name} raises {error!r}, torch {torchs_exception!r}") from error
    raise AssertionError(f"{name} accepts a call for which torch raises {torchs_exception!r}")


def exception_of(function: Callable[..., Any], tensors: Sequence[Tensor | None], options: dict[str, Any]) -> Exception | None:
    try:
        function(*tensors, **options)
    except Exception as error:
        return error
    return None


def in_float64(case: DrawnCase) -> tuple[Tensor | None, ...]:
    """The tensors in float64, for the reference."""
    return tuple(t.cpu().double() if t is not None and t.is_floating_point() else t for t in case.tensors)


def compare(case: DrawnCase, layout: str) -> None:
    """Compare outputs, strides and gradients with torch's in the same dtype and in float64."""
    dtype = next(t.dtype for t in case.tensors if t is not None)
    ours, torchs = (
        run(with_upstream_layout(f, layout), tuple(case.tensors), case.options, dtype) for f in (case.ours, case.torchs)
    )
    oracle = run(with_upstream_layout(case.torchs, layout), in_float64(case), case.options, dtype)
    assert ours.keys() == torchs.keys()
    for name, result in ours.items():
        if name.startswith("output") and result.numel() > 1:
            strides = [[s for s, n in zip(r[name].stride(), result.shape, strict=True) if n > 1] for r in (ours, torchs)]
            assert strides[0] == strides[1], f"{name}: strides {strides[0]}, torch has {strides[1]}"
        finite = oracle[name].isfinite() if result.is_floating_point() else None
        largest = float(oracle[name][finite].abs().max()) if finite is not None and finite.any() else 0.0
        units = 2 if dtype.itemsize == 2 else 16
        least = torch.finfo(dtype).tiny if case.subnormal and name.startswith("output") else 1.0
        slack = units * case.condition * max(largest, least) * torch.finfo(dtype).eps
        if case.moves and name.startswith("output"):
            slack = 0.0
        expected = torchs[name]
        if finite is not None and not (
            result.isfinite().equal(expected.isfinite()) and result.isnan().equal(expected.isnan())
        ):  # then torch's float64 is right
            expected = oracle[name].to(expected.device, expected.dtype)
        if name in case.more_nan:
            result = torch.where(result.isfinite(), result, expected)
        if name in case.fewer_nan:
            result = torch.where(expected.isnan(), expected, result)
        close(result, expected, oracle[name], max(error(torchs[name], oracle[name]), slack / 2), name)


def fuzz(
    name: str, cases: int, start: int, on_case: Callable[[], None] = lambda: None, phases: tuple[Phase, ...] = tuple(Phase)
) -> None:
    """Check `cases` drawn cases of an operator; `start` is the seed."""

    @seed(start)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=phases)
    @given(st.data())
    def test(data: st.DataObject) -> None:
        with tma_everywhere() if "tma" in name else contextlib.nullcontext() as started:
            agrees(name, data)
        taken.append(bool(started))
        on_case()

    taken: list[bool] = []
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        test()
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert "tma" not in name or not INTERPRETED or sum(taken) > 0.5 * len(taken), "too few cases used TMA"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", default=",".join(OPERATORS), help="operators, separated by commas")
    parser.add_argument("--minutes", type=float, default=10, help="total time")
    parser.add_argument("--cases", type=int, default=10**9, help="limit of cases for each operator")
    parser.add_argument("--seed", type=int, default=0, help="first seed; default: %(default)s")
    parser.add_argument("--shrink", action="store_true", help="minimise a failing case")
    parser.add_argument("--record", action="store_true", help="record the result for docs/evidence.md")
    options = parser.parse_args()
    names = options.ops.split(",")
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        results[name] = {"cases": 0, "seed": options.seed, "failures": 0, "seconds": 0.0}
        started, at = time.monotonic(), options.seed

        def on_case(found: dict[str, Any] = results[name]) -> None:
            found["cases"] += 1

        while time.monotonic() - started < 60 * options.minutes / len(names) and results[name]["cases"] < options.cases:
            if INTERPRETED:  # small tiles have more edges; every fourth run uses the default tiles
                runtime.settings.interpreted_block, runtime.settings.wanted_programs = (16384, 1) if at % 4 == 3 else (16, 8)
            try:
                fuzz(name, 50, at, on_case, tuple(Phase) if options.shrink else (Phase.generate,))
            except Exception:
                results[name]["failures"] += 1
                traceback.print_exc()
                print(f"\nto repeat: python -m tests.fuzz --ops {name} --seed {at} --cases 50 --shrink\n", flush=True)
                break
            at += 1
        results[name]["seconds"] = round(time.monotonic() - started, 1)
        print(f"{name:27}" + "  ".join(f"{value} {key}" for key, value in results[name].items()), flush=True)
    if options.record:
        path = evidence.DOCS / "evidence" / "fuzz.json"
        kept = json.loads(path.read_text())["operators"] if path.exists() else {}
        kept |= results
        evidence.record("fuzz", {"operators": {name: kept[name] for name in OPERATORS if name in kept}})
    return 1 if any(found["failures"] for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
