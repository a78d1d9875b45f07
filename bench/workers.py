"""Work that may crash or hang, done by processes of its own: one does all of it, and another goes on behind what killed it.

Such a process reads items from its input, a line of JSON each. Before each it prints {"at": item}, then {"part": ...} as often
as it likes, and after it {"of": item, "result": ...}; whatever else it prints is ignored. Where it ends before the last item, a
new one goes on: an error on a GPU leaves a process that cannot use it any more.
"""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

MANY = 256  # lines that a pipe has room for, and enough for all cores when one of them takes long


def worked_off(
    items: Iterable[Any],
    command: Sequence[str],
    patience: Callable[[Any], float],
    until: float = float("inf"),
    at_once: int = 1,
) -> Iterator[tuple[Any, Any, str | None]]:
    """(item, part or result, None), or (item, None, what happened) for one that crashed or kept silent for longer than its
    patience, in seconds.

    A process is given `at_once` items ahead of its results. After `until`, of time.monotonic(), nothing more comes.

    Raises:
        RuntimeError: a process ended before it began with an item.
    """
    coming = iter(items)
    left = list(itertools.islice(coming, at_once))  # what a process has, or gets first
    while left and time.monotonic() < until:
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
            printed = _printed(process)
            at: list[Any] = []
            begun = False
            try:
                _give(process, left)
                while line := _next(printed, min(patience((at or left)[0]), until - time.monotonic())):
                    if "at" in line:
                        at.append(line["at"])
                        begun = True
                    elif "part" in line:
                        yield at[0], line["part"], None
                    elif "of" in line:
                        at.remove(line["of"])
                        left.remove(line["of"])
                        yield line["of"], line["result"], None
                        more = list(itertools.islice(coming, at_once - len(left)))
                        _give(process, more)
                        left += more
                        if not left:
                            return
                if time.monotonic() >= until:
                    return
                if line is not None:  # it closed its output, and so ends
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=5)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with what it started
                status = process.wait()
            errors.seek(0)
            said = errors.read().strip()
        if not begun:
            raise RuntimeError(f"the work was not even begun, exit status {status}:\n{said[-2000:]}")
        if at:
            left.remove(at[0])
            hung, crashed = f"took more than {patience(at[0]):.0f} s", f"crashed, exit status {status}: {said[-300:]}"
            yield at[0], None, hung if line is None else crashed
            left += itertools.islice(coming, at_once - len(left))


def _give(process: "subprocess.Popen[str]", items: Sequence[Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, which its output tells
        process.stdin.writelines(json.dumps(item) + "\n" for item in items)
        process.stdin.flush()


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
    """The next of the lines that is JSON; empty after the last; None when none comes for so many seconds.

    Without patience it is None even if a line is there: no time is left for it.
    """
    while patience > 0:
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            break
        if not line or line.startswith("{"):
            return json.loads(line) if line else {}
    return None


def given() -> Iterator[Any]:
    """The items of such a process."""
    return map(json.loads, sys.stdin)


def say(**what: Any) -> None:
    """A line of such a process."""
    print(json.dumps(what), flush=True)


def do_in_turn(do: Callable[[Any], Any], after: Callable[[], object] = lambda: None) -> None:
    """What such a process does: one item after the other. What `do` raises is its result, in words; `after` ends the process
    by raising.
    """
    for item in given():
        say(at=item)
        say(of=item, result=_done(do, item))
        after()


def do_side_by_side(do: Callable[[Any], Any]) -> None:
    """The same by a process on each core but one, which is left to who measures. Results are in order."""
    taken: queue.Queue[Any] = queue.Queue()

    def items() -> Iterator[Any]:
        for item in given():
            taken.put(item)
            yield item
        taken.put(None)

    with multiprocessing.get_context("fork").Pool(max(1, len(os.sched_getaffinity(0)) - 1)) as pool:
        results = pool.imap(functools.partial(_done, do), items())
        for item in iter(taken.get, None):
            say(at=item)
            say(of=item, result=next(results))


def _done(do: Callable[[Any], Any], item: Any) -> Any:
    try:
        return do(item)
    except Exception as error:  # whatever torch, Triton and their compilers may raise
        return words(error)


def words(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
