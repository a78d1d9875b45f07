"""Install the folders kernels, layers and models as subpackages of trinn. pyproject.toml has all other settings."""

from setuptools import setup

FOLDERS = ("kernels", "kernels/conv2d", "kernels/device", "kernels/runtime", "layers", "models")

setup(
    packages=["trinn", *(f"trinn.{folder.replace('/', '.')}" for folder in FOLDERS)],
    package_dir={f"trinn.{folder.replace('/', '.')}": folder for folder in FOLDERS},
    package_data={"trinn": ["py.typed"], "trinn.kernels.runtime": ["tiles/*.json"]},
)
