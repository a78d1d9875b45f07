"""The compiled loop of strided dgrad has the trip counts of its source. The interpreter compiles nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

TRIPS = """
import os
os.environ["TRITON_INTERPRET"] = "0"
import json, math
import torch, triton
from bench.compile.code import Driver
from bench.compile.ptx import Runs, values_of
from trinn.kernels.runtime import launch
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels import launchers
from trinn.kernels.device.indexing import axes_of

triton.runtime.driver.set_active(Driver("sm_90"))


def hits(axis, size):
    "The number of taps that hit the pixels of each phase."
    phases = range(min(axis.stride, size))
    return [sum((pixel + axis.padding - t * axis.dilation) % axis.stride == 0 for t in range(axis.taps)) for pixel in phases]


def trips(dtype, size, kernel, stride, padding, dilation):
    "The trip count of dgrad's loop by its PTX, and by the definition of a convolution."
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]
    dy, w = torch.empty(2, 4, *out, dtype=dtype, device="meta"), torch.empty(4, 3, *kernel, dtype=dtype, device="meta")
    launches = []
    with intercepted(lambda *of: launches.append(of), "sm_90"):
        launchers.conv2d_dgrad(dy, w, None, size, stride, padding, dilation, 1)
    ((jitted, programs, args, constants),) = launches
    binary = jitted.warmup(*args, grid=(1,), **constants)
    runs = Runs(binary.asm["ptx"], programs, list(values_of(args, binary.src.signature.values())))
    (loop,) = runs.loops
    rows, columns = (hits(axis, n) for axis, n in zip(axes_of(kernel, stride, padding, dilation), size))
    of_phases = [math.ceil(4 * h * w / constants["BLOCK_K"]) for h in rows for w in columns]
    return runs.executed[loop[-1]], programs // len(of_phases) * sum(of_phases)


print(json.dumps([trips(dtype, *case) for dtype in (torch.float32, torch.float64) for case in (
    ((13, 14), (3, 2), (2, 4), (2, 3), (2, 6)),
    ((7, 8), (1, 1), (2, 2), (0, 0), (1, 1)),
    ((11, 10), (2, 2), (3, 4), (0, 0), (1, 1)),
    ((9, 9), (3, 3), (4, 4), (1, 1), (4, 4)),
)]))
"""


def test_phase_without_taps_skips_the_loop(tmp_path: Path) -> None:
    """If the kernel divided by the number of taps, LLVM would conclude that no phase has zero taps, and run the loop anyway."""
    (tmp_path / "trips.py").write_text(TRIPS)
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parents[2]}".lstrip(":")}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "trips.py")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for compiled, expected in json.loads(done.stdout):
        assert compiled == expected > 0
