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
    interpreted_rows: int = 1  # largest number of rows per split (device/columns.py) in the interpreter
    wanted_programs: int = 1 if INTERPRETED else 264  # two per multiprocessor of a large GPU
    tile_of: Callable[..., Any] | None = None  # replaces gemm_tile of tuning.py: (product, architecture) -> tile
    interpret_tma: bool = False  # the interpreter runs the TMA kernels too
    int64_offsets: bool = INTERPRETED  # the interpreter is slow in int32: it checks for overflow
    intercept: Callable[..., None] | None = None  # receives each launch in place of a device
    architecture: str = ""  # GPU architecture to choose tiles for while launches are intercepted
    gpu: str | None = None  # name of the GPU to choose measured tiles for; None for the GPU in use

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
