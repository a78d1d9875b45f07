"""Observers of launches: `intercepted` replaces the launches, `recorded` lists them."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .settings import settings

_recording = threading.local()


class Launch(NamedTuple):
    """A launch of a compiled kernel."""

    kernel: Any
    compiled: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]


@contextlib.contextmanager
def intercepted(handle: Callable[..., None], architecture: str) -> Iterator[None]:
    """Call `handle(kernel, programs, args, constants)` instead of each launch, in any thread.

    Args:
        architecture: the GPU architecture for the choice of tiles, such as "sm_90".
    """
    with settings.changed(intercept=handle, architecture=architecture):
        yield


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect the launches of compiled kernels by this thread."""
    before = getattr(_recording, "launches", None)
    launches: list[Launch] = []
    _recording.launches = launches
    try:
        yield launches
    finally:
        _recording.launches = before


def record(*launch: Any) -> None:
    """Append a launch to the list from `recorded`, if this thread is recording."""
    launches = getattr(_recording, "launches", None)
    if launches is not None:
        launches.append(Launch(*launch))
