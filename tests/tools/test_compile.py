"""A part of `make compile-report`: the kernels of every operator compile for NVIDIA GPUs, without a GPU."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Cases of the compile report that together compile every kernel. The report reads machine code only for cases with a recorded
# row, so cases without one are cheap.
EVERY_KERNEL = (
    "^past int32, (batch norm|bins|linear|resize|unpooling|pixel shuffle|ReLU), tf32$|^past int32, relayout, fp16"
    "|^one column, padding, fp16|^one bin, (fp16|tf32)|^LeNet (conv1, fp16|pool, tf32)"
    "|^(depthwise 3x3|depthwise, two filters|ResNe(t conv1|Xt 3x3)), fp16, channels_last$"
)


def report(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "bench.compile_report", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert re.search(r"compiled with Triton .*, \d+ faults", done.stdout), done.stdout + done.stderr
    return done.returncode, done.stdout


def test_kernels_compile() -> None:
    status, table = report("--architectures", "sm_90", "--cases", EVERY_KERNEL)
    assert status == 0 and " 0 faults" in table, table
    compiled = {line.split()[0] for line in table.splitlines() if "_kernel " in line}
    assert compiled == {name for path in (ROOT / "kernels").rglob("*.py") for name in defined(path)}


def defined(path: Path) -> list[str]:
    return re.findall(r"@triton\.jit\ndef (\w+)", path.read_text())


def test_tensor_cores_are_used() -> None:
    status, table = report("--architectures", "sm_80", "sm_90", "--cases", "^(ResNet 3x3|odd 3 x 3), fp16, channels_last$")
    launches = [line.split() for line in table.splitlines() if re.search("_conv2d_(gather|wgrad)_", line)]
    assert status == 0 and len(launches) == 9
    assert all(int(tensor_core) > 0 for *_, tensor_core, _ in launches), table
    assert [load_bits for name, *_, load_bits in launches if "_tma_" not in name] == ["128"] * 3 + ["16"] * 3


def test_spill_is_a_fault() -> None:
    status, table = report("--architectures", "sm_90", "--cases", "LeNet conv2, tf32", "--registers", "32")
    assert status == 1 and "FAULT sm_90  _conv2d_gather_kernel" in table and "spills" in table
