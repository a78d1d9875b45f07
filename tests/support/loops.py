"""Print, as JSON, the properties of compiled convolution loops on Hopper: a program for test_machine_code.py.

Per loop: `ahead` copies start before the loop, and `pending` products may still run when an iteration ends. The output also has
the compile report's launches for tiles measured on a GPU; the argument is the folder with the files of these tiles. No kernel
runs, and no GPU is needed.
"""

from bench.compile import without_gpu  # noqa: F401  # before triton  # isort: skip

import json
import sys
from pathlib import Path

from bench.compile.code import read_loops, read_sass, waits
from bench.compile.launches import jobs_of
from bench.compile.report import compiled
from trinn.kernels.runtime import tuning

# All three passes, with the TMA kernels and with the pointer kernels.
CASES = "^(ResNet 3x3|odd 3 x 3), fp16, channels_last$"


def main() -> None:
    found = []
    for job in jobs_of("sm_90", CASES):
        if not any(name in job.kernel.__name__ for name in ("gather", "wgrad")):
            continue
        reported = compiled(job)
        assert not isinstance(reported, str), reported
        binary, stages = job.compiled(), job.constants["num_stages"]
        instructions = read_sass(binary.asm["cubin"])
        found.append({
            "kernel": job.words[0], "tma": job.uses_tma, "stages": stages,
            "loops": [loop._asdict() for loop in read_loops(binary.asm["ttgir"])],
            "instructions": sorted({instruction.name.split(".")[0] for instruction in instructions}),
            "waits": waits(binary.asm["ttgir"], stages, instructions), "reported": reported.waits,
            "spilled": reported.code.spilled, "shared": reported.code.shared,
        })  # fmt: skip
    tuning.TILES = Path(sys.argv[1])
    print(json.dumps([found, [job.words[1:] for job in jobs_of("sm_90", "^NVIDIA") if job.uses_tma]]))


if __name__ == "__main__":
    main()
