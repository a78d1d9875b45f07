"""Work that may crash or hang, done by processes of its own: one does all of it, and another goes on behind what killed it.

Such a process gets the items as JSON in its last argument. Before each it prints {"at": item}, then {"part": ...} as often as
it likes, and after it {"of": item, "result": ...}; whatever else it prints is ignored. Where it ends before the last item, a
new one goes on: an error on a GPU leaves a process that cannot use it any more.
"""

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def worked_off(
    items: Sequence[Any], command: Sequence[str], patience: Callable[[Any], float], until: float = float("inf")
) -> Iterator[tuple[Any, Any, str | None]]:
    """(item, part or result, None), or (item, None, what happened) for one that crashed or kept silent for longer than its
    patience, in seconds.

    After `until`, of time.monotonic(), nothing more comes.

    Raises:
        RuntimeError: a process ended before it began with an item.
    """
    left = list(items)
    while left:
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen([*command, json.dumps(left)], stdout=subprocess.PIPE, stderr=errors, text=True)
            printed = _printed(process)
            at, begun = None, False
            try:
                while left and (line := _next(printed, min(patience(at or left[0]), until - time.monotonic()))):
                    if "at" in line:
                        at, begun = line["at"], True
                    elif "part" in line:
                        yield at, line["part"], None
                    elif "of" in line:
                        left.remove(line["of"])
                        at = None
                        yield line["of"], line["result"], None
                if not left or time.monotonic() >= until:
                    return
                if line is not None:  # it closed its output, and so ends
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=5)
            finally:
                process.kill()
                status = process.wait()
            errors.seek(0)
            said = errors.read().strip()
        if not begun:
            raise RuntimeError(f"the work was not even begun, exit status {status}:\n{said[-2000:]}")
        if at is not None:
            left.remove(at)
            hung, crashed = f"took more than {patience(at):.0f} s", f"crashed, exit status {status}: {said[-300:]}"
            yield at, None, hung if line is None else crashed


def _printed(process: "subprocess.Popen[str]") -> "queue.Queue[str]":
    """The lines that a process prints, as they come; the last is empty."""
    lines: queue.Queue[str] = queue.Queue()

    def forward() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=forward, daemon=True).start()
    return lines


def _next(lines: "queue.Queue[str]", patience: float) -> dict[str, Any] | None:
    """The next of the lines that is JSON; empty after the last; None when none comes for so many seconds."""
    while True:
        try:
            line = lines.get(timeout=max(0.0, patience))
        except queue.Empty:
            return None
        if not line or line.startswith("{"):
            return json.loads(line) if line else {}


def say(**what: Any) -> None:
    """A line of such a process."""
    print(json.dumps(what), flush=True)
