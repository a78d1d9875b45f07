"""The environment report, `python -m trinn.env`, also with missing packages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trinn
from trinn import env
from trinn.kernels.runtime.interpreter import INTERPRETED

ROOT = Path(__file__).resolve().parents[2]
NAMES = "trinn Python system CPU torch Triton NumPy driver GPU float32 determinism tiles variables".split() + ["a kernel"]


def report(*command: str, **environment: str) -> dict[str, str]:
    """Run the report in another process. Return its lines by name."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], env=given | environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = re.split(r"\n(?! )", done.stdout.rstrip())
    return {line[:13].rstrip(): line[13:] for line in lines}


def test_report() -> None:
    found = report("-m", "trinn.env", TORCH_LOGS="-dynamo", SECRET_TOKEN="hidden")
    assert list(found) == NAMES
    assert not [line for line in found.values() if "not known" in line]
    assert found["trinn"].startswith(trinn.__version__) and found["torch"].startswith(torch.__version__)
    assert ("interprets kernels: torch sees no GPU" if INTERPRETED else "compiles kernels: torch sees a GPU") in found["Triton"]
    assert found["a kernel"] == "relu runs correctly"
    assert set(found["variables"].split()) >= {f"PYTHONPATH={ROOT}", "TORCH_LOGS=-dynamo"}
    assert "hidden" not in str(found)
    assert found["GPU"].count("multiprocessors") == torch.cuda.device_count()


def test_a_kernel_that_cannot_run() -> None:
    found = report("-m", "trinn.env", TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert "compiles kernels: TRITON_INTERPRET=0 is set" in found["Triton"]
    assert found["a kernel"].startswith("not known: RuntimeError: trinn cannot compute here: ")


def test_without_torch_and_triton() -> None:
    """The lines of missing packages name the package. All other lines are complete."""
    missing = "import sys; sys.modules.update(torch=None, triton=None, numpy=None)"
    found = report("-c", f"{missing}; import runpy; runpy.run_module('trinn.env', None, '__main__')", PATH="/nowhere")
    assert list(found) == NAMES
    unknown = {name for name, line in found.items() if line.startswith("not known: ModuleNotFoundError: ")}
    assert unknown == {"torch", "Triton", "NumPy", "driver", "GPU", "float32", "determinism", "tiles", "a kernel"}
    assert found["trinn"].startswith(trinn.__version__)


@pytest.mark.parametrize("wrong", [[0.0, 0.0, 3.0], RuntimeError("launch\nfailed")], ids=["wrong result", "error"])
def test_a_kernel_that_fails(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def activation_forward(x: torch.Tensor, activation: str) -> torch.Tensor:
        if isinstance(wrong, Exception):
            raise wrong
        return torch.tensor(wrong)

    monkeypatch.setattr("trinn.kernels.launchers.activation_forward", activation_forward)
    found = dict(env.report())["a kernel"]
    assert found == "not known: RuntimeError: launch failed" if isinstance(wrong, Exception) else "WRONG" in found
