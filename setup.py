"""Installs the folders kernels, layers and models inside the package trinn; all else is said in pyproject.toml."""

from setuptools import setup

FOLDERS = ("kernels", "layers", "models")

setup(
    packages=["trinn", *(f"trinn.{folder}" for folder in FOLDERS)],
    package_dir={f"trinn.{folder}": folder for folder in FOLDERS},
    package_data={"trinn": ["py.typed"], "trinn.kernels": ["tiles/*.json"]},
)
