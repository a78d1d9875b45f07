"""A slice of `make compile-report`: LeNet's kernels and one of each other operator compile for two NVIDIA GPUs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SLICE = r"LeNet .*(fp16|tf32)|(batch norm|ReLU|pool|twice).*tf32$|depthwise 3x3, fp16|border.*fp16"


def report(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "bench.compile_report", "--architectures", "sm_80", "sm_90", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert re.search(r"compiled with Triton .*, \d+ faults", done.stdout), done.stdout + done.stderr
    return done.returncode, done.stdout


def test_kernels_compile() -> None:
    status, table = report("--cases", SLICE)
    assert status == 0 and " 0 faults" in table, table
    kernels = {line.split()[0] for line in table.splitlines() if "_kernel " in line}
    modules = {path.stem for path in (ROOT / "kernels").glob("*.py") if "@triton.jit" in path.read_text()}
    assert {kernel.split(".")[0] for kernel in kernels} == modules


def test_a_spill_fails() -> None:
    status, table = report("--cases", "dilated 3x3, fp16", "--registers", "32")
    assert status == 1 and "FAULT sm_90  conv2d._gather_gemm_kernel" in table and "spills" in table
