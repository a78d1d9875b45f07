"""Settings of this process. Tests and benchmarks change them temporarily."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .interpreter import INTERPRETED


@dataclass
class Settings:
    """Settings of tiles and launches. Launchers read them at every call."""

    interpreted_block: int = 16384  # elements; an interpreted program takes milliseconds at any size, so blocks are large
    interpreted_rows: int = 1  # most rows of a split of device/columns.py in the interpreter
    wanted_programs: int = 1 if INTERPRETED else 264  # two per multiprocessor of a large GPU
    tile_of: Callable[..., Any] | None = None  # replaces the rules of tuning.py: (product, architecture) -> tile
    interpret_tma: bool = False  # the interpreter runs the TMA kernels too
    int64_offsets: bool = INTERPRETED  # the interpreter is slow in int32: it checks for overflow
    intercept: Callable[..., None] | None = None  # receives each launch in place of a device
    architecture: str = ""  # of the GPU for intercepted launches
    gpu: str | None = None  # name of the GPU for the choice of tiles; None: of the device

    @contextlib.contextmanager
    def changed(self, **values: Any) -> Iterator[None]:
        """Set some values, and restore the previous ones at the end."""
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)


settings = Settings()
