"""Rules for the sources: imports, one name per operator, constructs forbidden in kernels and layers, plain prose."""

import ast
import re
import symtable
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "layers", "models", "tests", "bench", "examples")
SOURCES = {
    str(path.relative_to(ROOT).with_suffix("")): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
}

# Allowed imports between folders. Tests may import everything.
IMPORTS: dict[str, set[str]] = {
    "kernels": set(),
    "layers": {"kernels"},
    "models": {"layers"},
    "examples": {"kernels", "layers", "models"},
    "bench": {"kernels", "layers", "models"},
}
# The folders of kernels/, each with its allowed imports from the rest of kernels/.
KERNEL_FOLDERS = {
    "runtime": set[str](),
    "device": {"runtime"},
    "conv2d": {"copy", "device", "runtime", "pool2d", "reduce", "statistics2d"},
}
# Files for every operator of a folder to import.
SHARED = {
    "kernels": {*KERNEL_FOLDERS, "copy", "gather2d", "reduce", "statistics2d"} - {"conv2d"},
    "layers": {"function", "public", "reduce", "window"},
}
# Operators built on another operator.
BUILT_ON = {
    "kernels": {"conv_transpose2d": {"conv2d"}},
    "layers": {
        "batchnorm2d": {"activation"},
        "conv2d": {"pad2d"},
        "conv_transpose2d": {"conv2d"},
        "adaptive_pool2d": {"pool2d"},
        "scale_add": {"activation"},
        "sync_batchnorm": {"batchnorm2d"},
        "upsample2d": {"adaptive_pool2d"},
    },
}
# Files of layers/ for all operators or for whole models. They may import any operator.
ON_ALL = {"backend", "classes", "convert", "fused", "fused_functional", "patched", "report"}
# upsample2d is the layer of antialias2d.
NO_LAYER = {"antialias2d"}
# Adaptive pooling runs pool2d's kernels, sync_batchnorm batchnorm2d's.
NO_KERNELS = {"adaptive_pool2d", "sync_batchnorm"}


def tree(source: str) -> ast.Module:
    return ast.parse(SOURCES[source].read_text())


def imports(source: str) -> Iterator[str]:
    """The full names imported by a file: `trinn.kernels.linear.linear_fprop`, `torch`."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["trinn", *source.split("/")][: -node.level] if node.level else []
            yield from (".".join([*package, *filter(None, [node.module]), name.name]) for name in node.names)


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(source)) if isinstance(node, ast.Call))


def operators(folder: str) -> list[str]:
    """The operators of a folder, each a file or a folder of its own."""
    names = {source.split("/")[1] for source in SOURCES if source.startswith(f"{folder}/")}
    return sorted(names - SHARED[folder] - ON_ALL - {"__init__"})


def in_folders(*folders: str) -> list[str]:
    return [source for source in SOURCES if source.startswith(tuple(f"{folder}/" for folder in folders))]


def test_folders_import_downwards() -> None:
    for source in in_folders(*IMPORTS):
        folder = source.split("/")[0]
        imported = {name.split(".")[1] for name in imports(source) if name.startswith("trinn.")}
        imported |= {name.split(".")[0] for name in imports(source)} & {"bench", "examples", "tests"}
        assert imported <= IMPORTS[folder] | {folder}, f"{source} imports {imported}"


def test_imports_can_be_followed() -> None:
    """Relative inside kernels/, layers/ and models/, since editors do not know them as packages of `trinn`; else absolute."""
    for source in in_folders("kernels", "layers", "models"):
        folder = source.split("/")[0]
        for node in ast.walk(tree(source)):
            if isinstance(node, ast.Import):
                assert all(not name.name.startswith(f"trinn.{folder}") for name in node.names), f"{source}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and node.level:
                inside = Path(source).parent.parents[node.level - 2] if node.level > 1 else Path(source).parent
                assert inside.parts[:1] == (folder,), f"{source}:{node.lineno} leaves {folder}/"
                module = ROOT / inside / (node.module or "").replace(".", "/")
                assert module.with_suffix(".py").exists() or module.is_dir(), f"{source}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom):
                assert not f"{node.module}.".startswith(f"trinn.{folder}."), f"{source}:{node.lineno}"


@pytest.mark.parametrize("folder", SHARED)
def test_operators_import_no_sibling(folder: str) -> None:
    for source in in_folders(folder):
        operator = source.split("/")[1]
        folder_imports = KERNEL_FOLDERS.get(operator) if folder == "kernels" else None
        if operator in operators(folder) or folder_imports is not None:
            modules = {name.split(".")[2] for name in imports(source) if name.startswith(f"trinn.{folder}.")} - {operator}
            allowed = folder_imports if folder_imports is not None else SHARED[folder] | BUILT_ON[folder].get(operator, set())
            assert modules <= allowed, f"{source} imports {modules}"


def test_no_triton_above_the_kernels() -> None:
    assert not [source for source in in_folders("layers", "models") if "triton" in {n.split(".")[0] for n in imports(source)}]


def test_one_name_per_operator() -> None:
    tests = {source for source in SOURCES if source.startswith("tests/operators/")}
    for operator in {*operators("kernels"), *operators("layers")}:
        assert operator in operators("kernels") or operator in NO_KERNELS, operator
        assert operator in operators("layers") or operator in NO_LAYER, operator
        assert f"tests/operators/test_{operator}" in tests or operator in NO_LAYER, operator


def test_each_operator_has_a_record() -> None:
    """The tests collect their tables from the records: an operator without a record would be tested only in its own file."""
    for operator in operators("layers"):
        assert f"tests/operators/{operator}" in SOURCES, f"layers/{operator}.py needs a record: tests/operators/{operator}.py"


def test_no_meaningless_names() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [source for source in SOURCES if empty & set(source.split("/")[-1].split("_"))]


def test_no_assertions_on_arguments() -> None:
    for source in in_folders("kernels", "layers", "models"):
        assert not [node.lineno for node in ast.walk(tree(source)) if isinstance(node, ast.Assert)], source


def test_no_atomics() -> None:
    for source in in_folders("kernels"):
        assert not [call.lineno for call in calls(source) if "atomic" in ast.unparse(call.func)], source


def test_kernels_start_in_launch() -> None:
    """Only launch.py contains `kernel[grid](...)`."""
    assert {s for s in in_folders("kernels") for call in calls(s) if isinstance(call.func, ast.Subscript)} == {
        "kernels/runtime/launch"
    }


def test_names_of_kernels() -> None:
    """Kernels are private, `_..._kernel`, with unique names to distinguish them in a profiler."""
    names = [
        node.name
        for source in in_folders("kernels")
        for node in ast.walk(tree(source))
        if isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, node.decorator_list)
    ]
    assert all(name.startswith("_") and name.endswith("_kernel") for name in names) and len(names) == len(set(names)), names


def functions(source: str) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(source)) if isinstance(node, ast.FunctionDef))


def test_long_kernels_are_commented() -> None:
    """A kernel of more than 40 lines has comments on lines of their own: the reasons of its phases."""
    for source in in_folders("kernels"):
        lines = SOURCES[source].read_text().splitlines()
        for function in functions(source):
            body = lines[function.lineno : function.end_lineno]
            if function.name.endswith("_kernel") and len(body) >= 40:
                assert sum(line.lstrip().startswith("#") for line in body) >= 3, f"{source}: {function.name}"


def test_parameters_shadow_nothing() -> None:
    """No parameter has the name of a function, class or module of its file, except in torch's signatures."""
    torchs = {("layers/patched", "pad")}
    for source in in_folders("kernels", "layers", "models"):
        names = {node.name for node in tree(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for node in ast.walk(tree(source)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {(name.asname or name.name).split(".")[0] for name in node.names}
        for function in functions(source):
            parameters = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
            assert not parameters & names or (source, function.name) in torchs, f"{source}: {function.name}"


def test_init_files_have_each_name_once() -> None:
    for source in in_folders("kernels", "layers", "models"):
        if source.endswith("/__init__"):
            imported = [name for node in ast.walk(tree(source)) if isinstance(node, ast.ImportFrom) for name in node.names]
            lists = [
                node.value for node in ast.walk(tree(source)) if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node)
            ]
            listed = {node.value for value in lists for node in ast.walk(value) if isinstance(node, ast.Constant)}
            assert not [name.name for name in imported if name.name in listed or name.name == name.asname], source


def test_kernels_divide_by_divide() -> None:
    """Triton's float32 `/` is not rounded to nearest on a GPU; precision.py's `divide` is. Exceptions have a comment."""
    allowed = {
        ("kernels/device/precision", "divide"),
        ("kernels/device/indexing", "first_reader"),
        ("kernels/device/epilogue", "store_statistics"),
    }
    for source in in_folders("kernels"):
        for function in functions(source):
            if {"triton.jit", "device_function"} & set(map(ast.unparse, function.decorator_list)):
                divides = any(isinstance(node, ast.Div) for node in ast.walk(function))
                assert not divides or (source, function.name) in allowed, f"{source}: {function.name}"


def comprehensions(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """List, set and dict comprehensions of a function, inlined by Python 3.12; not generator expressions."""
    for child in scope.get_children():
        if child.get_name() in ("listcomp", "setcomp", "dictcomp"):
            yield child
            yield from comprehensions(child)


def scopes(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield scope
    for child in scope.get_children():
        yield from scopes(child)


def test_comprehensions_run_on_python_3_12() -> None:
    """CPython 3.12.0 to 3.12.3 lose a name if one comprehension uses it as a global and another binds it (gh-118513)."""
    for source, path in SOURCES.items():
        for scope in scopes(symtable.symtable(path.read_text(), str(path), "exec")):
            found = list(comprehensions(scope))
            bound = {s.get_name() for one in found for s in one.get_symbols() if s.is_local()}
            read = {s.get_name() for one in found for s in one.get_symbols() if s.is_global()}
            assert not bound & read, f"{source}: {scope.get_name()}"


def test_overloads_are_torchs() -> None:
    """Overloads (`.default`) come from torch.ops: on a GPU, `kernels.ops` has plain functions, without overloads."""
    for source in in_folders("kernels", "layers", "models", "tests"):
        if {name for name in imports(source) if name == "trinn.kernels.ops"}:
            calls_overloads = [n for n in ast.walk(tree(source)) if isinstance(n, ast.Attribute) and n.attr == "default"]
            assert not [n.lineno for n in calls_overloads if ast.unparse(n.value).startswith(("ops.", "getattr(ops"))], source


def prose(source: str) -> str:
    """The comments and docstrings of a file."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree(source)) if isinstance(node, documented)]
    with SOURCES[source].open("rb") as file:
        texts += [token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    return "\n".join(texts)


@pytest.mark.parametrize("folder", FOLDERS)
def test_prose_is_plain(folder: str) -> None:
    """Few relative clauses: at most 2 in 100 words of comments and docstrings are which, that, what, those or whose."""
    words = re.findall(r"[a-z']+", "\n".join(map(prose, in_folders(folder))).lower())
    assert sum(word in {"which", "that", "what", "those", "whose"} for word in words) <= 0.02 * len(words)
