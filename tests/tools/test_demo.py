"""`make demo` on a few digits: its output, its files, and an interrupt that leaves no incomplete file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from trinn.models import LeNet

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "examples" / "train_digits.py")]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def test_output_and_files(tmp_path: Path) -> None:
    arguments = ["--limit", "100", "--epochs", "2", "--out", str(tmp_path)]
    done = subprocess.run(COMMAND + arguments, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    where, counts, begun, first, _, second, result, weights, drawing = done.stdout.splitlines()
    assert where.startswith("Triton on " if torch.cuda.is_available() else "Triton's interpreter on the CPU")
    assert counts == "80 digits to train on, 20 held out"
    assert begun.startswith("epoch 1/2   step 1/2   loss "), "a pipe gets progress within an epoch too"
    assert first.startswith("epoch 1/2   loss ") and "held out" in second
    assert "of 20, after" in result
    assert "plain torch.nn loads it and reads 20 of 20 digits the same" in weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.png", "lenet-digits.pt"]
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    LeNet(nn=torch.nn).load_state_dict(torch.load(tmp_path / "lenet-digits.pt", weights_only=True), strict=True)


def test_an_interrupt_keeps_earlier_files(tmp_path: Path) -> None:
    """Ctrl-C prints one line and exits with status 130; the file of an earlier run is unchanged."""
    (tmp_path / "lenet-digits.pt").write_bytes(b"of an earlier run")
    running = subprocess.Popen(
        [*COMMAND, "--limit", "50", "--epochs", "500", "--out", str(tmp_path)], env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )  # fmt: skip
    assert running.stdout is not None
    while not running.stdout.readline().startswith("epoch "):  # wait until training starts
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and errors.splitlines() == ["interrupted"], errors
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("lenet-digits.pt", b"of an earlier run")]
