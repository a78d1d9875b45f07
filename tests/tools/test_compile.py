"""A part of `make compile-report`: the kernels of every operator compile for NVIDIA GPUs, without a GPU."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPILLS = """
from bench.compile import without_gpu
from bench.compile.launches import jobs_of
from bench.compile.report import compiled, fault_of

job = next(job for job in jobs_of("sm_90", "^LeNet conv2 b128, tf32$") if "gather" in job.kernel.__name__)
for most in {}, {"maxnreg": 48}:
    job = job._replace(constants=job.constants | most)
    print(fault_of(job, compiled(job)))
"""


def output(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report(*options: str) -> str:
    table = output("-m", "bench.compile.report", *options)
    assert re.search(r"compiled with Triton .*, 0 faults", table), table
    return table


def test_kernels_compile() -> None:
    table = report("--architectures", "sm_90", "--kernels")
    compiled = {line.split()[0] for line in table.splitlines() if "_kernel " in line}
    assert compiled == {name for path in (ROOT / "kernels").rglob("*.py") for name in defined(path)}


def defined(path: Path) -> list[str]:
    return re.findall(r"@triton\.jit\ndef (\w+)", path.read_text())


def test_tensor_cores_are_used() -> None:
    cases = "^(ResNet 3x3|odd 3 x 3), fp16, channels_last$"
    table = report("--architectures", "sm_80", "sm_90", "--cases", cases)
    launches = [line.split() for line in table.splitlines() if re.search("_conv2d_(gather|wgrad)_", line)]
    assert len(launches) == 9
    assert all(int(tensor_core) > 0 for *_, tensor_core, _ in launches), table
    assert [load_bits for name, *_, load_bits in launches if "_tma_" not in name] == ["128"] * 3 + ["16"] * 3


def test_spill_is_a_fault() -> None:
    fault, of_few_registers = output("-c", SPILLS).splitlines()
    assert fault == "None" and re.fullmatch(r"spills \d+ bytes per thread", of_few_registers)
