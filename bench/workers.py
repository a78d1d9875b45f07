"""Run items that may crash or hang in a worker process, and start a new worker if one dies.

A worker reads items from stdin, one JSON line each, and works on them in order. Before an item it prints {"at": item}, then any
number of {"part": ...} lines, and after it {"of": item, "result": ...}. Other output is ignored. If a worker ends early, a new
one continues with the next item: after a GPU error a process cannot use the GPU any more.
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

MANY = 256  # items in flight: few enough for the buffer of a pipe, enough to keep all cores busy behind a slow item


def worked_off(
    items: Iterable[Any],
    command: Sequence[str],
    patience: Callable[[Any], float],
    until: float = float("inf"),
    at_once: int = 1,
) -> Iterator[tuple[Any, Any, str | None]]:
    """Run items in worker processes of `command`.

    Args:
        patience: seconds of silence after which an item counts as hung.
        until: a time of time.monotonic(), at which the worker is killed and the iteration ends.
        at_once: how many items the worker receives ahead of its results.

    Yields:
        (item, part or result, None), or (item, None, error message) if the item crashed or hung.

    Raises:
        RuntimeError: a worker ended before it started an item.
    """
    coming = iter(items)
    left = list(itertools.islice(coming, at_once))  # the worker's items, or those for the next worker
    while left and time.monotonic() < until:
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
            begun, busy = False, False  # whether any item has begun, and whether left[0] has
            try:
                _give(process, left)
                while line := _next(lines, min(patience(left[0]), until - time.monotonic())):
                    if "at" in line:
                        begun = busy = True
                    elif "part" in line:
                        yield left[0], line["part"], None
                    elif "of" in line:
                        busy = False
                        yield left.pop(0), line["result"], None
                        more = list(itertools.islice(coming, at_once - len(left)))
                        _give(process, more)
                        left += more
                        if not left:
                            return
                if time.monotonic() >= until:
                    return
                if line is not None:  # stdout was closed: the worker is ending
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=5)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and its child processes
                status = process.wait()
            errors.seek(0)
            said = errors.read().strip()
        if not begun:
            raise RuntimeError(f"the worker ended before its first item, exit status {status}:\n{said[-2000:]}")
        if busy:
            item = left.pop(0)
            hung, crashed = f"took more than {patience(item):.0f} s", f"crashed, exit status {status}: {said[-300:]}"
            yield item, None, hung if line is None else crashed
            left += itertools.islice(coming, at_once - len(left))


def _give(process: "subprocess.Popen[str]", items: Sequence[Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the worker has ended; the caller finds its stdout closed
        process.stdin.writelines(json.dumps(item) + "\n" for item in items)
        process.stdin.flush()


def _forward(stdout: Iterable[str], lines: "queue.Queue[str]") -> None:
    """Put the lines of a process into a queue, and an empty line at the end."""
    for line in itertools.chain(stdout, [""]):
        lines.put(line)


def _next(lines: "queue.Queue[str]", patience: float) -> dict[str, Any] | None:
    """Return the next JSON line: {} after the last line, None if no line arrives within `patience` seconds.

    If `patience` is not positive, return None even if a line is waiting: the time limit has passed.
    """
    while patience > 0:
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            break
        if not line or line.startswith("{"):
            return json.loads(line) if line else {}
    return None


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def do_in_turn(do: Callable[[Any], Any], after: Callable[[], object] = lambda: None) -> None:
    """Process the items of this worker one after another, and call `after` after each item.

    If `do` returns an iterator, each element is a part, and the result is None. If it raises, the result is the error message.
    If `after` raises, the process ends.
    """

    def parts(item: Any) -> Any:
        result = do(item)
        if not isinstance(result, Iterator):
            return result
        for part in result:
            _say(part=part)

    for item in map(json.loads, sys.stdin):
        _say(at=item)
        _say(of=item, result=_done(parts, item))
        after()


def do_side_by_side(do: Callable[[Any], Any]) -> None:
    """Process the items of this worker in a pool. Results are in order. One core stays free for the measuring process."""
    taken: queue.Queue[Any] = queue.Queue()

    def items() -> Iterator[Any]:
        for item in map(json.loads, sys.stdin):
            taken.put(item)
            yield item
        taken.put(None)

    with multiprocessing.get_context("fork").Pool(max(1, len(os.sched_getaffinity(0)) - 1)) as pool:
        results = pool.imap(functools.partial(_done, do), items())
        for item in iter(taken.get, None):
            _say(at=item)
            _say(of=item, result=next(results))


def _done(do: Callable[[Any], Any], item: Any) -> Any:
    try:
        return do(item)
    except Exception as error:  # torch, Triton and their compilers may raise anything
        return words(error)


def words(error: BaseException) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
