"""trinn installs as trinn alone: editable, as a wheel, and not at all, with the checkout on PYTHONPATH."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import trinn

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "trinn", "kernels", "layers", "models")
# Prints where trinn, its folders and, if they can be imported too, the folders without trinn come from.
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
    """A copy, since setuptools writes into what it builds from."""
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
    """A fresh environment that sees the packages of this one, but not what is installed in them as editable."""
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
    """What PROGRAM prints, started elsewhere; a namesake of another project outside `folder` does not count."""
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
    """The folders can then be imported by their bare names as well, as from any checkout."""
    found = origins(Path(sys.executable), checkout, PYTHONPATH=str(checkout))
    assert found == [*in_checkout(checkout), *in_checkout(checkout)[1:]]
