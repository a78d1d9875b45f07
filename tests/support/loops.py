"""Print, as JSON, the properties of compiled convolution loops on Hopper: a program for test_machine_code.py.

Per loop: `ahead` copies start before the loop, and `pending` products may still run when an iteration ends. The output also has
the compile report's launches for tiles measured on a GPU; the argument is the folder with the files of these tiles. No kernel
runs, and no GPU is needed.
"""

from bench.compile_report import code_of, jobs_of  # sets TRITON_INTERPRET, so it comes first  # isort: skip

import json
import sys
from pathlib import Path

from bench.machine_code import Code, read_loops, read_sass, waits
from trinn.kernels.runtime import tuning

# All three passes, with the TMA kernels and with the pointer kernels.
CASES = "^(ResNet 3x3|odd 3 x 3), fp16, channels_last$"


def main() -> None:
    found = []
    for job in jobs_of("sm_90", CASES):
        if not any(name in job.kernel.__name__ for name in ("gather", "wgrad")):
            continue
        code = code_of(job)
        assert isinstance(code, Code), code
        binary = job.kernel.warmup(*job.args, grid=(1,), **job.constants)
        ttgir, instructions, stages = binary.asm["ttgir"], read_sass(binary.asm["cubin"]), job.constants["num_stages"]
        found.append({
            "kernel": job.words[0], "tma": job.uses_tma, "stages": stages,
            "loops": [{"operations": loop.operations, "in registers": loop.in_registers, "ahead": loop.ahead,
                       "pending": loop.pending} for loop in read_loops(ttgir)],
            "instructions": sorted({instruction.name.split(".")[0] for instruction in instructions}),
            "waits": waits(ttgir, stages, instructions), "reported": code.waits,
            "spilled": code.spilled, "shared": code.shared,
        })  # fmt: skip
    tuning.TILES = Path(sys.argv[1])
    print(json.dumps([found, [job.words[1:] for job in jobs_of("sm_90", "^NVIDIA") if job.uses_tma]]))


if __name__ == "__main__":
    main()
