"""Print the facts about a machine for a bug report: `python -m trinn.env`."""

import importlib
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trinn

# The report shows these environment variables, if they are set.
VARIABLES = re.compile(
    r"TRITON_|TORCH|PYTORCH_|CUDA_VISIBLE_DEVICES$|CUDA_LAUNCH_BLOCKING$|CUDA_MODULE_LOADING$|CUBLAS_|CUDNN_|NVIDIA_TF32_OVERRIDE$"
    r"|NCCL_|GLOO_|HIP_|ROCR_|OMP_|MKL_NUM_THREADS$|PYTHONPATH$|LD_LIBRARY_PATH$|LD_PRELOAD$"
)
GIVEN = dict(os.environ)  # read here, since trinn.kernels may set TRITON_INTERPRET


def report() -> Iterator[tuple[str, str]]:
    """Yield the lines of the report as (name, text). If a text cannot be found, the line has the reason instead."""
    lines: dict[str, Callable[[], str]] = {
        "trinn": _trinn,
        "Python": lambda: f"{platform.python_version()}, {platform.python_implementation()}",
        "system": platform.platform,
        "CPU": _cpu,
        "torch": _torch,
        "Triton": _triton,
        "NumPy": lambda: importlib.import_module("numpy").__version__,
        "driver": _driver,
        "GPU": _gpus,
        "float32": _float32,
        "determinism": _determinism,
        "tiles": _tiles,
        "variables": lambda: "\n".join(sorted(f"{k}={v}" for k, v in GIVEN.items() if VARIABLES.match(k))) or "none set",
        "a kernel": _kernel,
    }
    for name, find in lines.items():
        try:
            found = find()
        except Exception as error:
            found = f"not known: {type(error).__name__}: {' '.join(str(error).split())}"
        yield name, found


def _trinn() -> str:
    return f"{trinn.__version__}{_commit()}, in {Path(trinn.__file__).parent}"


def _commit() -> str:
    """The commit of a checkout; empty for an installed package or without git."""
    git = ["git", "-C", str(trinn._checkout)]
    if not (trinn._checkout / ".git").exists():
        return ""
    try:
        described = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    except OSError:
        return ""
    return f", commit {described.stdout.strip().replace('-dirty', ', changed')}" if described.returncode == 0 else ""


def _cpu() -> str:
    cores = f"{os.cpu_count()} cores"
    try:
        model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    return f"{model[1] if model else platform.processor() or platform.machine()}, {cores}"


def _torch() -> str:
    import torch

    built = (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "no GPU"
    )
    cudnn = f", cuDNN {torch.backends.cudnn.version()}" if torch.backends.cudnn.is_available() else ""
    return f"{torch.__version__}, built for {built}{cudnn}; CPU threads: {torch.get_num_threads()}"


def _triton() -> str:
    from trinn.kernels.runtime.interpreter import INTERPRETED, REASON

    return f"{importlib.import_module('triton').__version__}, {'interprets' if INTERPRETED else 'compiles'} kernels: {REASON}"


def _driver() -> str:
    from torch.utils import collect_env

    return collect_env.get_nvidia_driver_version(collect_env.run) or "no NVIDIA driver found"


def _gpus() -> str:
    import torch

    return "\n".join(map(_gpu, range(torch.cuda.device_count()))) or "none"


def _gpu(index: int) -> str:
    import torch

    found: Any = torch.cuda.get_device_properties(index)
    architecture = getattr(found, "gcnArchName", "") if torch.version.hip else f"sm_{found.major}{found.minor}"
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    return f"{found.name}, {architecture}, {memory}, {found.multi_processor_count} multiprocessors"


def _float32() -> str:
    import torch

    convolution, product = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    return f"convolutions: {convolution}, linear layers: {product} (torch's fp32_precision)"


def _determinism() -> str:
    import torch

    flags = {
        "use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }
    return ", ".join(f"{name} {'on' if on else 'off'}" for name, on in flags.items()) + "; trinn is always deterministic"


def _tiles() -> str:
    import torch

    from trinn.kernels.runtime import tuning

    shipped = ", ".join(sorted(path.stem for path in tuning.TILES.glob("*.json"))) or "no GPU"
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return f"measured on {shipped}; {len(tuning.measured_tiles(name))} for this GPU and version of Triton"


def _kernel() -> str:
    """The result of running a kernel."""
    import torch

    from trinn.kernels import launchers
    from trinn.kernels.runtime.interpreter import INTERPRETED, NO_DEVICE

    x = torch.tensor([-1.0, 0.0, 2.0], device="cpu" if INTERPRETED or NO_DEVICE else "cuda")
    y = launchers.activation_forward(x, "relu").tolist()
    return "relu runs correctly" if y == [0.0, 0.0, 2.0] else f"relu runs, but is WRONG: relu([-1, 0, 2]) is {y}"


def main() -> None:
    warnings.filterwarnings("ignore", "trinn cannot compute here")  # the report has this line
    for name, found in report():
        print(f"{name:13}" + found.replace("\n", "\n" + 13 * " "), flush=True)


if __name__ == "__main__":
    main()
