"""Run a function of a test in several processes at once. `python -m tests.support.processes` is one of them."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

ROOT = Path(__file__).resolve().parents[2]
GPUS = torch.cuda.device_count()
PATIENCE = 240  # seconds

needs_processes = pytest.mark.skipif(
    not distributed.is_available() or GPUS == 1,
    reason="needs torch.distributed, and either two GPUs or the interpreter",
)


def together(function: Callable[[int], Any], folder: Path, processes: int = 2) -> list[Any]:
    """Call `function(rank)` in each of `processes` processes and return the results in rank order.

    `function` must be at the top level of a module of tests/: every process imports it, and writes its result to `folder`.
    """
    arguments = [f"{function.__module__}:{function.__name__}", str(folder), str(processes)]
    command = [sys.executable, "-m", "tests.support.processes", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(processes)
    ]
    try:
        printed = [process.communicate(timeout=PATIENCE)[0].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), "\n".join(printed)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def main(name: str, folder: str, processes: int, rank: int) -> None:
    module, function = name.split(":")
    if GPUS:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if GPUS else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=PATIENCE // 2),
    )
    result = getattr(importlib.import_module(module), function)(rank)
    torch.save(result, f"{folder}/{rank}.pt")
    time.sleep(0.2)  # gloo's threads still need Python to free sent tensors: an earlier exit aborts the process
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
