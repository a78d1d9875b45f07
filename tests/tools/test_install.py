"""trinn installs only the package `trinn`, editable or as a wheel, and also runs from a checkout on PYTHONPATH."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import trinn

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "trinn", "kernels", "layers", "models")
# Prints the files of trinn, of its folders, and of the folders by their bare names if these can be imported.
PROGRAM = """
import importlib.util
import trinn, trinn.kernels, trinn.layers, trinn.models
for name in ("trinn", "trinn.kernels", "trinn.layers", "trinn.models", "kernels", "layers", "models"):
    spec = importlib.util.find_spec(name)
    print(spec.origin if spec else None)
"""
VERSION = "import importlib.metadata; print(importlib.metadata.version('trinn'))"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, since setuptools writes into its source folder."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in INSTALLED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    return copy


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A fresh environment with the packages of this one, except editable installations."""
    pytest.importorskip("setuptools", "77")
    pytest.importorskip("pip")
    folder = tmp_path / "environment"
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "beside.pth").write_text("\n".join(here))
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path, cwd: Path) -> None:
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall")
    run(python, "-m", "pip", "install", *options, *what, cwd=cwd)


def origins(python: Path, folder: Path, **environment: str) -> list[str]:
    """The output of PROGRAM in another folder, without files outside `folder` (other projects with the same name)."""
    lines = run(python, "-c", PROGRAM, cwd=Path("/"), **environment).splitlines()
    return [line for line in lines if Path(line).is_relative_to(folder)]


def in_checkout(checkout: Path) -> list[str]:
    return [str(checkout / name / "__init__.py") for name in ("trinn", "kernels", "layers", "models")]


def test_wheel(python: Path, checkout: Path, tmp_path: Path) -> None:
    install(python, checkout, cwd=tmp_path)
    shutil.rmtree(checkout)
    (package,) = tmp_path.glob("environment/lib/python*/site-packages/trinn")
    folders = ("kernels", "layers", "models")
    assert origins(python, tmp_path) == [str(package / "__init__.py"), *(str(package / f / "__init__.py") for f in folders)]
    assert (package / "py.typed").exists()
    assert run(python, "-c", VERSION, cwd=tmp_path).strip() == trinn.__version__


def test_editable(python: Path, checkout: Path, tmp_path: Path) -> None:
    install(python, "--editable", checkout, cwd=tmp_path)
    assert origins(python, tmp_path) == in_checkout(checkout)
    assert run(python, "-c", VERSION, cwd=tmp_path).strip() == trinn.__version__


def test_uninstalled(checkout: Path) -> None:
    """In a checkout the folders can be imported by their bare names as well."""
    found = origins(Path(sys.executable), checkout, PYTHONPATH=str(checkout))
    assert found == [*in_checkout(checkout), *in_checkout(checkout)[1:]]


FOUND = """
import importlib.util, sys
ours = importlib.util.find_spec("kernels").origin  # transformers does this too
import kernels, kernels.layer
assert ours != kernels.__file__ == importlib.util.find_spec("kernels").origin and kernels.__version__ == "1.0"
from kernels import get_kernel
assert get_kernel is kernels.layer.get_kernel
"""
# An editable installation has its own finder, after all folders.
EDITABLE = """
import importlib.machinery, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [FOLDER]) if name == "kernels" else None
sys.path.remove(FOLDER)
sys.meta_path.append(Finder)
"""
MISSING = """
import importlib
module = importlib.import_module("kernels")
assert not hasattr(module, "__version__")
for program in ("from kernels import get_kernel", "import kernels.activation"):
    try:
        exec(program)
    except ImportError as error:
        assert "kernels" in str(error)
    else:
        raise AssertionError(program)
"""
COMPUTE = """
import torch, trinn.layers
assert trinn.layers.relu(torch.ones(1, device="cuda" if torch.cuda.is_available() else "cpu")).tolist() == [1.0]
"""
WITHOUT_TORCH = "assert 'torch' not in sys.modules\n"


@pytest.mark.parametrize(
    "program", [FOUND + WITHOUT_TORCH + COMPUTE, COMPUTE + EDITABLE + FOUND], ids=["before trinn", "after trinn, editable"]
)
def test_another_package_named_kernels(program: str, tmp_path: Path) -> None:
    """`import kernels` finds Hugging Face's package even if a checkout of trinn precedes it on sys.path."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("from kernels.layer import get_kernel\n__version__ = '1.0'\n")
    (package / "layer.py").write_text("def get_kernel(): ...\n")
    run(sys.executable, "-c", program.replace("FOLDER", repr(str(tmp_path))), cwd=ROOT, PYTHONPATH=str(tmp_path))


@pytest.mark.skipif("kernels" in importlib.metadata.packages_distributions(), reason="Hugging Face's kernels is installed")
def test_no_other_package_named_kernels() -> None:
    """Without Hugging Face's package, its names cannot be imported from a checkout's kernels/, here on sys.path twice."""
    run(sys.executable, "-c", MISSING + COMPUTE + MISSING, cwd=ROOT, PYTHONPATH=str(ROOT))


def test_other_folders_by_their_bare_names() -> None:
    """Importing layers and models by their bare names, too, does no harm."""
    run(sys.executable, "-c", "import layers, models" + COMPUTE + "import layers.conv2d, models.lenet", cwd=ROOT)
