"""Who may import whom, one name per operator, and what no kernel or layer does: read off the sources."""

import ast
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "layers", "models", "tests", "bench", "examples")
SOURCES = {f"{folder}/{path.stem}": path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))}

# What each folder may import of the others. Tests see everything.
SEES: dict[str, set[str]] = {
    "kernels": {"kernels"},
    "layers": {"kernels", "layers"},
    "models": {"layers", "models"},
    "examples": {"kernels", "layers", "models"},
    "bench": {"bench", "kernels", "layers", "models"},
}
# The files of a folder that its operators share.
SHARED = {
    "kernels": {
        "boxes",
        "columns",
        "epilogue",
        "flops",
        "gather2d",
        "indexing",
        "interpreter",
        "launch",
        "op",
        "precision",
        "reduce",
        "relayout",
        "replay",
        "statistics2d",
        "tuning",
        "vmap",
        "walk",
        "windows2d",
    },
    "layers": {"function", "public", "reduce", "window"},
}
# An operator that stands on another one.
STANDS_ON = {
    "kernels": {
        "conv2d": {"conv2d_tma", "conv2d_tma_wgrad", "depthwise2d"},
        "conv2d_fused": {"conv2d", "conv2d_tma", "depthwise2d", "pool2d"},
        "conv2d_tma": {"first2d"},
        "conv2d_tma_wgrad": {"conv2d_tma", "first2d"},
        "conv_transpose2d": {"conv2d"},
        "depthwise2d": {"depthwise2d_strips"},
    },
    "layers": {
        "batchnorm2d": {"relu"},
        "conv2d": {"pad2d"},
        "conv_transpose2d": {"conv2d"},
        "adaptive_pool2d": {"pool2d"},
        "sync_batchnorm": {"batchnorm2d"},
        "upsample2d": {"adaptive_pool2d"},
    },
}
# What stands on all operators, or changes whole models.
ON_ALL = {"backend", "classes", "convert", "fused", "joined", "patched", "report"}
# Kernels without a layer of their own: conv2d hands narrow groups to depthwise2d, which has depthwise2d_strips for
# most, what Hopper is made for to conv2d_tma, and that images of few channels to first2d; upsample2d antialiasing to
# antialias2d, layers/joined.py stands on conv2d_fused and several others.
NO_LAYER = {"antialias2d", "conv2d_fused", "conv2d_tma", "conv2d_tma_wgrad", "depthwise2d", "depthwise2d_strips", "first2d"}

# The bins of adaptive_pool2d are windows of pool2d; sync_batchnorm has the kernels of batchnorm2d.
NO_KERNELS = {("kernels/", "adaptive_pool2d"), ("kernels/", "sync_batchnorm")}


def tree(source: str) -> ast.Module:
    return ast.parse(SOURCES[source].read_text())


def imports(source: str) -> Iterator[str]:
    """The full names a file imports, `trinn.kernels.conv2d.conv2d_fprop` as well as `torch`."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["trinn", *source.split("/")][: -node.level] if node.level else []
            yield from (".".join([*package, *filter(None, [node.module]), name.name]) for name in node.names)


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(source)) if isinstance(node, ast.Call))


def operators(folder: str) -> list[str]:
    names = (source.split("/")[1] for source in SOURCES if source.startswith(f"{folder}/"))
    return [name for name in names if name != "__init__" and name not in SHARED[folder] | ON_ALL]


def in_folders(*folders: str) -> list[str]:
    return [source for source in SOURCES if source.startswith(tuple(f"{folder}/" for folder in folders))]


def test_folders_import_downwards() -> None:
    for source in in_folders(*SEES):
        seen = {name.split(".")[1] for name in imports(source) if name.startswith("trinn.")}
        seen |= {name.split(".")[0] for name in imports(source)} & {"bench", "examples", "tests"}
        assert seen <= SEES[source.split("/")[0]], f"{source} imports {seen}"


@pytest.mark.parametrize("folder", SHARED)
def test_operators_import_no_sibling(folder: str) -> None:
    for operator in operators(folder):
        modules = {name.split(".")[2] for name in imports(f"{folder}/{operator}") if name.startswith(f"trinn.{folder}.")}
        assert modules <= SHARED[folder] | STANDS_ON[folder].get(operator, set()), f"{folder}/{operator} imports {modules}"


def test_no_triton_above_the_kernels() -> None:
    assert not [source for source in in_folders("layers", "models") if "triton" in {n.split(".")[0] for n in imports(source)}]


def test_one_name_per_operator() -> None:
    for operator in {*operators("kernels"), *operators("layers")}:
        folders = ("kernels/",) if operator in NO_LAYER else ("kernels/", "layers/", "tests/test_")
        wanted = {f"{folder}{operator}" for folder in folders if (folder, operator) not in NO_KERNELS}
        there = wanted & SOURCES.keys()
        assert there == wanted, f"{operator} has only {there}"


def test_no_names_that_say_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [source for source in SOURCES if empty & set(source.split("/")[1].split("_"))]


def test_no_assertions_on_what_a_caller_gives() -> None:
    for source in in_folders("kernels", "layers", "models"):
        assert not [node.lineno for node in ast.walk(tree(source)) if isinstance(node, ast.Assert)], source


def test_no_atomics() -> None:
    for source in in_folders("kernels"):
        assert not [call.lineno for call in calls(source) if "atomic" in ast.unparse(call.func)], source


def test_kernels_start_in_launch() -> None:
    """`kernel[grid](...)` stands in launch.py alone."""
    assert {s for s in in_folders("kernels") for call in calls(s) if isinstance(call.func, ast.Subscript)} == {"kernels/launch"}


def test_names_of_kernels() -> None:
    """Private to their file, `_..._kernel`; what they call is a device_function."""
    for source in in_folders("kernels"):
        for node in ast.walk(tree(source)):
            if isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, node.decorator_list):
                assert node.name.startswith("_") and node.name.endswith("_kernel"), f"{source}: {node.name}"


def functions(source: str) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(source)) if isinstance(node, ast.FunctionDef))


def test_kernels_divide_by_divided() -> None:
    """Triton's float32 `/` is not rounded to nearest on a GPU; precision.py's `divided` is. What is allowed says why."""
    allowed = {("kernels/precision", "divided"), ("kernels/indexing", "first_reader"), ("kernels/epilogue", "store_statistics")}
    for source in in_folders("kernels"):
        for function in functions(source):
            if {"triton.jit", "device_function"} & set(map(ast.unparse, function.decorator_list)):
                divides = any(isinstance(node, ast.Div) for node in ast.walk(function))
                assert not divides or (source, function.name) in allowed, f"{source}: {function.name}"


def comprehensions(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """List, set and dict comprehensions of a function, which Python 3.12 makes a part of it; not generator expressions."""
    for child in scope.get_children():
        if child.get_name() in ("listcomp", "setcomp", "dictcomp"):
            yield child
            yield from comprehensions(child)


def scopes(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield scope
    for child in scope.get_children():
        yield from scopes(child)


def test_comprehensions_run_on_python_3_12() -> None:
    """CPython 3.12.0 to 3.12.3 lose a name that is global in one comprehension and bound in another (gh-118513)."""
    for source, path in SOURCES.items():
        for scope in scopes(symtable.symtable(path.read_text(), str(path), "exec")):
            found = list(comprehensions(scope))
            bound = {s.get_name() for one in found for s in one.get_symbols() if s.is_local()}
            read = {s.get_name() for one in found for s in one.get_symbols() if s.is_global()}
            assert not bound & read, f"{source}: {scope.get_name()}"


def test_overloads_are_torchs() -> None:
    """`kernels.ops` has operators on a CPU and plain functions on a GPU: only torch.ops has overloads on both."""
    for source in in_folders("kernels", "layers", "models", "tests"):
        if {name for name in imports(source) if name == "trinn.kernels.ops"}:
            calls_overloads = [n for n in ast.walk(tree(source)) if isinstance(n, ast.Attribute) and n.attr == "default"]
            assert not [n.lineno for n in calls_overloads if ast.unparse(n.value).startswith(("ops.", "getattr(ops"))], source
