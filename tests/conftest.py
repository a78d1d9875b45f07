"""What every test runs under: small tiles in the interpreter, so that a small shape has several; NaN in fresh memory."""

from collections.abc import Iterator

import pytest
import torch

from trinn.kernels import tuning
from trinn.kernels.launch import INTERPRETED


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 and several splits where kernels are interpreted: edges, loops and second passes all take part."""
    if INTERPRETED:
        monkeypatch.setattr(tuning, "interpreted_block", 16)
        monkeypatch.setattr(tuning, "wanted_programs", 8)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty is filled with NaN, so that an element no kernel writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
