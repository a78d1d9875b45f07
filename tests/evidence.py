"""Results of the long suites: stored as JSON in docs/evidence/, rendered into docs/evidence.md.

A suite calls `record(name, figures)`; `python -m tests.evidence` writes the page from all stored figures. Do not edit
the page: a test fails if it differs from the rendered figures.
"""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trinn.kernels.runtime.interpreter import INTERPRETED

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "evidence.md"
CONCATENATIONS = {"cat", "concat", "concatenate", "stack"}

INTRODUCTION = """\
# Evidence

`python -m tests.evidence` generates this page from `docs/evidence/*.json`; do not edit it. The suites named below write the
JSON.
"""


def record(name: str, figures: dict[str, Any], device: str | None = None) -> None:
    """Store the figures of one suite with its environment. `device` overrides the name of this machine's device."""
    import triton  # after trinn, since trinn configures Triton's interpreter

    found_on = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "device": device or ("Triton's interpreter" if INTERPRETED else torch.cuda.get_device_name()),
        "python": platform.python_version(),
    }
    path = DOCS / "evidence" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"found_on": found_on, **figures}, indent=1) + "\n")


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def torchs_material(figures: dict[str, Any]) -> str:
    passed = figures["passed"]
    columns = ["samples", "strided", "gradchecks", "gradgradchecks", "errors", "training", "evaluation", "left out"]
    rows = [[name, *(counts.get(column) or "" for column in columns)] for name, counts in passed.items()]
    rows.append(["**all**", *(sum(counts.get(column, 0) for counts in passed.values()) for column in columns)])
    return f"""\
## torch's own test inputs

torch tests its operators (OpInfo) and modules (ModuleInfo) with these inputs. trinn gets the same inputs; the table counts the
inputs that passed:

- samples: outputs, strides, gradients and buffers in float32, against torch;
- strided: the same samples with gaps between all elements of their tensors;
- gradchecks, gradgradchecks: in float64;
- errors: invalid calls, with torch's exception and message;
- training, evaluation: modules, with repr, state_dict, copies and pickles;
- left out: one-dimensional signals and three-dimensional volumes for operators that resize, and derivatives of unpooling with
  overlapping windows (torch's gradient is no derivative there: values without effect on the result get one too).

No input failed. `make test-long` runs all of them; with pytest's `--record` it updates the counts.

{table(["", *columns], rows)}"""


def share_on_trinn(elements: dict[str, int]) -> float:
    """Of the elements of a network's results, those computed by trinn's kernels; concatenations do not count."""
    return elements["trinn"] / (elements["trinn"] + elements["torch"])


def coverage(figures: dict[str, Any]) -> str:
    rows = []
    for name, row in figures["networks"].items():
        elements, left = row["elements"], [operator for operator in row["left"] if operator not in CONCATENATIONS]
        copied = elements["concatenation"] / sum(elements.values())
        cells = "x".join(map(str, row["input"])), f"{share_on_trinn(elements):.1%}", f"{copied:.1%}" if copied else ""
        rows.append([name, *cells, ", ".join(left)])
    return f"""\
## Networks under torch.compile

The share of each network that trinn's kernels compute under `torch.compile(model, backend="trinn")`, in training: elements of
the results of all calls, before fusion and without views. Concatenations, which torch copies, have a column of their own,
with their share of all elements. The networks have their original width; those after DeepLab's head have fewer blocks.
`pytest tests/convert/test_coverage.py --record` counts again.

{table(["network", "input", "on trinn, without concatenations", "concatenations", "other operators left to torch"], rows)}"""


def precision(figures: dict[str, Any]) -> str:
    dtypes = list(dict.fromkeys(row[2] for row in figures["rows"]))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for name, tensor, dtype, largest, mean in figures["rows"]:
        if dtype == "float64":
            shown = f"{largest:.1f} ulp" if largest else "equal"
        else:
            shown = f"{largest:.2f}, {mean:.2f}" if largest else "exact"
        cells.setdefault((name, tensor), {})[dtype] = shown
    rows = [[*names, *(found.get(dtype, "") for dtype in dtypes)] for names, found in cells.items()]
    return f"""\
## Precision

Each cell has the largest and the mean error against float64, in units of torch's error in the same dtype on the same device.
1.00 is as exact as torch, less is more exact, and "exact" means no error. The float64 column has the largest distance from
torch, in units in the last place of the largest value, or "equal". Triton's interpreter truncates float32 to bfloat16, and a
GPU rounds to nearest: so bfloat16 has about twice torch's error in the interpreter. `make precision` measures again, on a GPU
also with TF32.

{table(["", "", *dtypes], rows)}"""


def mutants(figures: dict[str, Any]) -> str:
    rows = figures["mutants"]
    caught = [row for row in rows if row[2]]
    shown = [[name, f"`{file}`", f"`{test}`" if test else "nothing"] for name, file, test, _ in rows]
    return f"""\
## Kernels broken on purpose

The tests of `make test` caught {len(caught)} of {len(rows)} broken kernels. Each of the tests named here passes with the
unbroken kernel. `make mutants` repeats this.

{table(["broken", "in", "caught by"], shown)}"""


def fuzz(figures: dict[str, Any]) -> str:
    columns = ["cases", "failures", "seed", "seconds"]
    rows = [[name, *(found[column] for column in columns)] for name, found in figures["operators"].items()]
    return f"""\
## Fuzzing

hypothesis generates random cases: geometry, options, dtype, memory layouts of the tensors and of the upstream gradient, and
values with NaN, infinities, ties, zeros and extremes. The test compares outputs, strides, gradients and exceptions with torch.
`make fuzz` runs more cases.

{table(["", *columns], rows)}"""


def rehearsal(figures: dict[str, Any]) -> str:
    bytes_ = figures["bytes"]
    rows = [
        ["tests of `make gpu`", figures["tests"]],
        ["of these, tests that launch kernels", figures["launching"]],
        ["distinct kernels they would compile", figures["kernels"]],
        ["benchmark rows, with shrunk cases and a network", figures["rows"]],
        ["tests with an exception not about a value, and benchmark rows without a trinn kernel", len(figures["faults"])],
        ["launches of random calls, compared byte by byte at cuLaunchKernelEx", bytes_["compared"]],
        ["of these, launched from the launch cache", bytes_["replayed"]],
        ["tensor maps among their parameters", bytes_["maps"]],
        ["C launchers of Triton built and called", bytes_["launchers"]],
    ]
    return f"""\
## The rehearsal of a GPU

`make rehearse` runs the host side of `make gpu` on a stub GPU: Triton's own launchers call a fake driver. No kernel runs, and
no result is compared. Last run: {figures["date"]}.

{table(["", ""], rows)}"""


# The sections of the page in order: name of the stored figures -> function that renders them.
SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "torchs_material": torchs_material,
    "coverage": coverage,
    "mutants": mutants,
    "fuzz": fuzz,
    "precision": precision,
    "rehearsal": rehearsal,
}


def render() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        path = DOCS / "evidence" / f"{name}.json"
        if path.exists():
            figures = json.loads(path.read_text())
            on = figures["found_on"]
            parts.append(
                f"{section(figures)}\nRun with torch {on['torch']}, Triton {on['triton']}, Python {on['python']}, "
                f"on {on['device']}.\n"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
    print(f"wrote {PAGE}")
