"""Settings of this process that tests and benchmarks change for a while."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .interpreter import INTERPRETED


@dataclass
class Settings:
    """How kernels are tiled and started. Launchers read these values at every call."""

    interpreted_block: int = 16384  # elements; an interpreted program costs milliseconds whatever its size, so blocks are large
    interpreted_rows: int = 1  # rows that one interpreted program of device/columns.py steps through
    wanted_programs: int = 1 if INTERPRETED else 264  # two for each multiprocessor of a large GPU
    tile_of: Callable[..., Any] | None = None  # replaces the rules of tuning.py: (product, architecture) -> tile
    interpret_tma: bool = False  # the interpreter takes the kernels for Hopper's copy engine too
    int64_offsets: bool = INTERPRETED  # the interpreter checks every int32 operation for overflow, which is slow
    intercept: Callable[..., None] | None = None  # gets each launch instead of a device
    architecture: str = ""  # that launches are intercepted for
    gpu: str | None = None  # the name of the GPU that tiles are chosen for

    @contextlib.contextmanager
    def changed(self, **values: Any) -> Iterator[None]:
        """Set some values, and restore the former ones at the end."""
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)


settings = Settings()
