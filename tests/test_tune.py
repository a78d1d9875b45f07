"""Tiles that were measured: how candidates are chosen, measured by processes that may crash, kept, and found again."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import tune
from bench.machine_code import SHARED_MEMORY
from bench.tune import Case
from trinn.kernels import tuning
from trinn.kernels.tuning import Product, Tile

PRODUCT = Product("linear", 100, 1000, 4096, torch.float16, "ieee")
CASE = Case("AlexNet linear", "fp16", False)
TILES = [Tile(16 << i, 64, 32, 4, 3) for i in range(4)]

# Crashes at its second tile, hangs at its third, and says of the fourth that it computes something else.
CHILD = """
import json, os, sys, time
(case, number), tiles = map(json.loads, sys.argv[1:])
for tile in tiles:
    print(json.dumps({"at": tile}), flush=True)
    if tile[0] == 32: os._exit(9)
    if tile[0] == 64: time.sleep(60)
    print(json.dumps({"of": tile, "result": None if tile[0] == 128 else 12.5}), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuning, "TILES", tmp_path / "tiles")
    monkeypatch.setattr(tuning, "gpu", lambda device: "NVIDIA H200")
    tuning.measured_tiles.cache_clear()
    yield tmp_path / "tiles"
    tuning.measured_tiles.cache_clear()


def test_crashes_and_hangs_are_struck_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "PATIENCE", 1)
    found = dict(tune.measured(CASE, 0, TILES, [sys.executable, "-c", CHILD]))
    assert found == {TILES[0]: 12.5, TILES[1]: None, TILES[2]: None, TILES[3]: None}


def test_a_process_that_cannot_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not even begun, exit status 1:\nnonsense"):
        list(tune.measured(CASE, 0, TILES, [sys.executable, "-c", "raise SystemExit('nonsense')"]))


def test_winners_are_kept_and_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, other = torch.device("cuda"), PRODUCT._replace(m=1)
    guess = tuning.gemm_tile(PRODUCT, device)
    tune.record("NVIDIA H200", {other.like: TILES[0]})
    tune.record("NVIDIA H200", {PRODUCT.like: TILES[1]})
    tuning.measured_tiles.cache_clear()
    assert guess != tuning.gemm_tile(PRODUCT, device) == TILES[1]
    assert tuning.gemm_tile(PRODUCT._replace(m=65, k=2049), device) == TILES[1]  # the same powers of two
    assert tuning.gemm_tile(other, device) == TILES[0]
    assert tuning.gemm_tile(PRODUCT._replace(m=129), device) not in TILES
    monkeypatch.setattr(tuning, "gpu", lambda device: "NVIDIA A100")
    assert tuning.gemm_tile(PRODUCT, device) == guess


def test_tiles_of_another_triton_are_not_taken(folder: Path) -> None:
    tune.record("NVIDIA H200", {PRODUCT.like: TILES[1]})
    path = folder / "nvidia_h200.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"triton": "1.0.0"}))
    assert tuning.gemm_tile(PRODUCT, torch.device("cuda")) not in TILES


def test_shipped_tiles_can_be_read() -> None:
    for path in tuning.TILES.glob("*.json"):
        found = json.loads(path.read_text())
        assert path.stem == found["gpu"].lower().replace(" ", "_") and found["triton"]
        assert all(Tile(*tile).m >= 16 for tile in found["tiles"].values())


def test_candidates_fit() -> None:
    for product in (PRODUCT, PRODUCT._replace(m=3, n=10, k=84), PRODUCT._replace(dtype=torch.float32, precision="tf32x3")):
        found = tune.candidates(product, 24)
        assert 12 < len(found) == len(set(found)) <= 24
        assert found[0] == tuning.guessed_tile(product, "sm_90")
        for tile in found[1:]:
            assert tile.stages * tile.k * (tile.m + tile.n) * product.dtype.itemsize <= SHARED_MEMORY["sm_90"]
            assert tile.m <= max(16, 2 * product.m) and tile.n <= max(16, 2 * product.n)


def test_products_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # conftest's small tiles
    found = tune.products("^LeNet (conv2|linear3), fp16, channels_last$")
    assert [(case.name, number, product.kernel) for case, number, product in found.values()] == [
        ("LeNet conv2", 0, "conv2d"),
        ("LeNet conv2", 1, "conv2d"),
        ("LeNet conv2", 2, "wgrad"),
        ("LeNet linear3", 0, "linear"),
        ("LeNet linear3", 2, "linear"),
        ("LeNet linear3", 3, "linear"),
    ]
