"""The record of an operator: all that the tables of the tests need to know about it.

Each operator `layers/<operator>.py` has a record in `tests/operators/<operator>.py`: an instance `OPERATOR` of `Operator`. The
tests collect their tables from all records with `table`.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.shapes import Passes
from tests.support.check import randn
from tests.support.drawing import Drawing, DrawnCase

FOLDER = Path(__file__).resolve().parents[1] / "operators"
# Images for calls, for the table of errors, and of the size of a small network's.
IMAGE, LARGER, MEDIUM = (2, 5, 7, 6), (3, 5, 14, 13), (4, 16, 64, 64)
TAP_NUMBER = "the number of a tap, from a loop's counter and a constant"

Shape = tuple[int, ...]


class OperatorCase(NamedTuple):
    """A function of float tensors with these shapes. `others` returns the tensors of its further arguments."""

    function: Callable[..., Any]
    shapes: tuple[Shape, ...]
    others: Callable[[], tuple[Tensor, ...]] = tuple
    per_image: bool = True  # the output of an image depends on no other image
    differentiable: bool = True  # autograd's gradient is the derivative, in torch too
    writes: bool = False  # it updates tensors of `others` in place
    float64_strides: bool = True  # torch's outputs have the same strides in float64 as in float32
    fake_cuda: bool = True  # torch's operator accepts fake GPU tensors on a machine without a GPU
    saved: tuple[int, ...] = ()  # the numbers of the tensors saved for backward; not necessary for all cases
    programs: int = 0  # recorded number of interpreted programs, forward and backward

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(self.shapes)]


def case(function: Callable[..., Any], *shapes: Shape, **options: Any) -> OperatorCase:
    """A call of the function with options. Options with the name of a field of OperatorCase set the field."""
    fields = {name: options.pop(name) for name in OperatorCase._fields if name in options}
    return OperatorCase(lambda *tensors: function(*tensors, **options), shapes, **fields)


class Arguments(NamedTuple):
    """Arguments of a public function, or of a module: `options` for its constructor, the tensors for its call."""

    options: dict[str, Any] = {}  # required arguments, except tensors
    tensors: Mapping[str, Callable[[], Tensor]] = {}  # tensor arguments besides the input
    shape: Shape = (1, 2, 10, 5)  # of the input

    def inputs(self) -> dict[str, Tensor]:
        return {"input": randn(*self.shape)} | {name: make() for name, make in self.tensors.items()}


class Samples(NamedTuple):
    """torch's OpInfo for a function: the samples that trinn gets too."""

    function: Callable[..., Any] | None = None  # default: trinn's function with the name of the OpInfo
    info: str = ""  # the OpInfo, if it is not that of torch.nn.functional
    variant: str = ""  # of the OpInfo
    shards: int = 1  # the number of tests that share the samples
    differentiable: bool = True  # autograd's gradient is the derivative, in torch too
    axes: int | None = None  # use only inputs with this number of axes


class ManyElements(NamedTuple):
    """A call of launchers for images of this shape. Only the last of many images is not zero."""

    function: Callable[[Tensor], Tensor]
    shape: Shape
    dtype: torch.dtype = torch.float16


class Mutant(NamedTuple):
    """`new` replaces `old`, a text with one occurrence in the file; `tests` names the tests to run first."""

    name: str
    file: str
    old: str
    new: str
    tests: str


Cases = Callable[[Any], Mapping[str, OperatorCase]]  # named calls, in a namespace with torch's names


def no_cases(nn: Any) -> Mapping[str, OperatorCase]:
    return {}


class Operator(NamedTuple):
    """The functions and modules of one file of layers/. Each field is optional."""

    calls: Cases = no_cases  # a small call of each path through the kernels, in the namespaces Ours and Torchs
    dynamic: Cases = no_cases  # more calls for dynamic shapes, with sizes from other sources
    tma: Cases = no_cases  # calls that tests/support/tma.py runs on the TMA kernels
    precision: Cases = no_cases  # calls for the table of errors, functions of x, weight and bias
    programs: Cases = no_cases  # calls of medium size with their number of interpreted programs
    draws: tuple[Callable[[Drawing], DrawnCase], ...] = ()  # functions that draw a random call for tests/fuzz.py
    functions: Mapping[str, Arguments] = {}  # functions with a twin in torch.nn.functional
    modules: Mapping[str, Arguments] = {}  # modules with a twin in torch.nn
    fused_modules: Mapping[str, Callable[[], nn.Module]] = {}  # modules without a twin
    samples: Mapping[str, Samples] = {}  # OpInfos, besides the default of each function
    patched: Mapping[str, Callable[[Tensor], Any]] = {}  # calls of torch's functions on (2, 4, 6, 6) images under `patched`
    passes: Mapping[str, Passes] = {}  # the passes (bench/shapes.py) on small tensors, to be spread past int32 in memory
    many_passes: Mapping[str, Passes] = {}  # the passes on more than 2^31 elements; they launch, but compute nothing
    last_image: Mapping[str, Callable[[Tensor], Any]] = {}  # a call for many (2, 16, 16) images; sums are of small integers
    many_elements: Mapping[str, ManyElements] = {}  # launchers for more than 2^31 elements in the interpreter
    small_multiplications: Mapping[str, str] = {}  # by kernel: its 32-bit multiplications; none is an offset or a size
    mutants: tuple[Mutant, ...] = ()  # kernels and layers broken on purpose


@functools.cache
def records() -> dict[str, Operator]:
    """The records by operator, in alphabetical order."""
    names = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith(("test_", "__init__")))
    return {name: importlib.import_module(f"tests.operators.{name}").OPERATOR for name in names}


def table(field: str, nn: Any = None) -> dict[str, Any]:
    """The entries of a field of all records, by name. A field of cases needs the namespace of their functions."""
    found: dict[str, Any] = {}
    for operator, record in records().items():
        entries = getattr(record, field) if nn is None else getattr(record, field)(nn)
        if twice := found.keys() & entries.keys():
            raise ValueError(f"tests/operators/{operator}.py: {field}: another record has {twice} too")
        found |= entries
    return found


def called(module: nn.Module) -> Callable[..., Any]:
    """A module as a function of its inputs and, after them, its parameters."""
    names = [name for name, _ in module.named_parameters()]

    def function(*tensors: Tensor) -> Any:
        inputs = len(tensors) - len(names)
        return torch.func.functional_call(module, dict(zip(names, tensors[inputs:], strict=True)), tensors[:inputs])

    return function
