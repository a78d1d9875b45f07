"""`python -m bench.tune` without a GPU: candidates, the check of a tile, timing, time limits, and the file of fastest tiles."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import registry
from bench.compile.code import SHARED_MEMORY
from bench.tune import __main__ as tune
from bench.tune import check, tiles
from bench.tune.tiles import Place
from tests.tools.test_bench import ROOT, Here, SetClock
from trinn.kernels import launchers, ops
from trinn.kernels.conv2d import pointer
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.settings import settings
from trinn.kernels.runtime.tuning import Gemm, GemmTile

PRODUCT = Gemm("linear", 100, 1000, 4096, torch.float16, "ieee")
TMA = Gemm("tma conv2d", 256, 50176, 1152, torch.bfloat16, "ieee")
TILES = [GemmTile(16 << i, 64, 32, 4, 3) for i in range(6)]
SMALL_CONV = registry.CASES["LeNet conv2 b128"].small()
NAME = "AlexNet conv3 b128"

# Worker: the first and last tiles do not compile, the second crashes, the third hangs, the fourth has a wrong result.
CHILD = """
import json, os, sys, time
compiles = "--compile-only" in sys.argv
for tile in map(json.loads, sys.stdin):
    print(json.dumps({"at": tile}), flush=True)
    if tile[0] == 32 and not compiles: os._exit(9)
    if tile[0] == 64 and not compiles: time.sleep(60)
    found = {16: "no room", 512: "no room"}.get(tile[0]) if compiles else {128: "wrong result"}.get(tile[0], 12.5)
    print(json.dumps({"of": tile, "result": found}), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuning, "TILES", tmp_path / "tiles")
    monkeypatch.setattr(settings, "gpu", "NVIDIA H200")
    tuning.measured_tiles.cache_clear()
    yield tmp_path / "tiles"
    tuning.measured_tiles.cache_clear()


def test_crashes_and_hangs_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "PATIENCE", 2.0)
    found = tune.settled(list(map(list, TILES)), [sys.executable, "-c", CHILD], math.inf)
    assert {tile[0]: what for tile, what in found} == {
        16: "no room",
        32: "crashed, exit status 9: ",
        64: "took more than 2 s",
        128: "wrong result",
        256: 12.5,
        512: "no room",
    }


def test_a_process_that_cannot_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="before its first item, exit status 1:\nnonsense"):
        list(tune.settled([[16]], [sys.executable, "-c", "raise SystemExit('nonsense')"], math.inf))


def test_fastest_tiles_are_stored_and_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, other = torch.device("cuda"), PRODUCT._replace(m=1)
    default = tuning.gemm_tile(PRODUCT, device)
    tiles.record("NVIDIA H200", {other.key: TILES[0]})
    tiles.record("NVIDIA H200", {PRODUCT.key: TILES[1]})
    tuning.measured_tiles.cache_clear()
    assert tiles.path_of("NVIDIA H200") == folder / "nvidia_h200.json"
    assert default != tuning.gemm_tile(PRODUCT, device) == TILES[1]
    assert tuning.gemm_tile(PRODUCT._replace(m=65, k=2049), device) == TILES[1]  # the same powers of two
    assert tuning.gemm_tile(other, device) == TILES[0]
    assert tuning.gemm_tile(PRODUCT._replace(m=129), device) not in TILES
    tiles.record("NVIDIA H200", {PRODUCT.key: None})  # measured again: the default tile is as fast
    tuning.measured_tiles.cache_clear()
    assert tuning.gemm_tile(PRODUCT, device) == default and tuning.gemm_tile(other, device) == TILES[0]
    monkeypatch.setattr(settings, "gpu", "NVIDIA A100")
    assert tuning.gemm_tile(other, device) not in TILES


def test_winner() -> None:
    """The default tile is kept unless another tile is clearly faster, or the default tile has no time."""

    def winner(*times: Any) -> GemmTile | None:
        return tiles.winner(dict(zip(TILES, times, strict=False)), TILES[0])

    assert winner(10.0, 9.8, 11.0) is None and winner(10.0, 9.6, 9.5) == TILES[2]
    assert winner("crashed", 12.0) == TILES[1] and winner(10.0, "wrong result", 9.0) == TILES[2]


def test_tiles_of_another_triton_are_ignored(folder: Path) -> None:
    tiles.record("NVIDIA H200", {PRODUCT.key: TILES[1]})
    path = folder / "nvidia_h200.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"triton": "1.0.0"}))
    assert tuning.gemm_tile(PRODUCT, torch.device("cuda")) not in TILES


def test_shipped_tiles_can_be_read() -> None:
    for path in tuning.TILES.glob("*.json"):
        found = json.loads(path.read_text())
        assert path.stem == found["gpu"].lower().replace(" ", "_") and found["triton"]
        assert all(GemmTile(*tile).m >= 16 for tile in found["tiles"].values())


def test_candidates_fit() -> None:
    for product in (
        PRODUCT, PRODUCT._replace(m=3, n=10, k=84), PRODUCT._replace(dtype=torch.float32, precision="tf32x3"),
        TMA, TMA._replace(m=32), TMA._replace(kernel="tma wgrad", dtype=torch.float32, precision="tf32"),
    ):  # fmt: skip
        found = tiles.candidates(product, "sm_90")
        assert 12 < len(found) == len(set(found))
        assert found[0] == tuning.default_tile(product, "sm_90")
        for tile in found[1:]:
            assert tile.stages * tile.k * (tile.m + tile.n) * product.dtype.itemsize <= SHARED_MEMORY["sm_90"]
            assert tile.m * tile.n <= 128 * 32 * tile.warps
            if product.kernel.startswith("tma "):  # wgmma multiplies 64 rows
                assert tile.m % 64 == 0 and 64 <= tile.n <= 320 and tile.m <= max(64, product.m)
            else:
                assert tile.m <= max(16, 2 * product.m) and tile.n <= max(16, 2 * product.n)


def test_float32_as_bf16_terms_has_bfloat16_operands() -> None:
    """With bf16x6, shared memory holds bfloat16 operands, and registers hold two accumulators."""
    terms = TMA._replace(dtype=torch.float32, precision="bf16x6")
    wide = {tile for tile in tiles.candidates(TMA, "sm_90") if tile.m * tile.n <= 64 * 32 * tile.warps}
    assert set(tiles.candidates(terms, "sm_90")) == wide | {tuning.default_tile(terms, "sm_90")}
    assert len(tiles.candidates(terms._replace(precision="tf32"), "sm_90")) < len(tiles.candidates(TMA, "sm_90"))


def test_products_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # conftest's small tiles
    found = tiles.products(["^LeNet (conv2|linear1) b128$"], ["fp16"], "sm_90")
    assert [(place.name, place.layout, place.number, product.kernel) for place, product in found.items()] == [
        ("LeNet conv2 b128", "channels_last", 0, "conv2d"),
        ("LeNet conv2 b128", "channels_last", 1, "conv2d"),
        ("LeNet conv2 b128", "channels_last", 2, "wgrad"),
        ("LeNet linear1 b128", "channels_last", 0, "linear"),
        ("LeNet linear1 b128", "channels_last", 1, "linear"),  # the third product has the same key
        ("LeNet conv2 b128", "contiguous", 1, "conv2d"),  # its channels are strided
    ]


def test_a_recorded_call_has_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a launcher requests two tiles, the last one belongs to the kernel it launches."""

    def launcher(x: Tensor, activation: str) -> Tensor:
        for product in (TMA, PRODUCT):
            tuning.gemm_tile(product, x.device)
        return x

    monkeypatch.setattr(launchers, "activation_forward", launcher)
    with tiles.recorded(lambda product, _: TILES[0]) as calls:
        ops.activation_forward(torch.ones(1, requires_grad=True), "relu")
        ops.channel_sum(torch.ones(1, 1, 1, 1))
    ((product, run),) = calls
    assert product == PRODUCT and run.func is launcher and not run.args[0].requires_grad
    assert ops.activation_forward is not launcher


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One small case, in the benchmark and in the check."""
    monkeypatch.setitem(registry.CASES, SMALL_CONV.name, SMALL_CONV)
    monkeypatch.setattr(check, "SMALL", {SMALL_CONV.name: (SMALL_CONV, "channels_last")})
    caches = check.kinds_of, check.expected, check.fault_of
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("number", range(3))
def test_timing(number: int, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the call that computes the product is timed, with the tile. A wrong result is not timed."""
    ran: list[Any] = []
    clock = SetClock(lambda call: ran.append((call.func.__name__, settings.tile_of(PRODUCT, ""))) or 2e-3)  # type: ignore[misc, func-returns-value]
    timer, place = check.Timer(Here(clock), "interpreter"), Place("fp32", SMALL_CONV.name, "contiguous", number)
    both = [GemmTile(16, 16, 16, 4, 2), GemmTile(32, 16, 16, 4, 2)]
    assert all(timer([*place, list(tile)]) == pytest.approx(2000) for tile in both)
    names = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")
    assert set(ran) == {(names[number], tile) for tile in both} and len(timer.calls) == 2
    ran.clear()
    assert timer.expected is not None
    timer.expected = [t + 0.1 for t in timer.expected]
    assert timer([*place, list(both[0])]) == "result differs from the first candidate's"
    monkeypatch.setattr(check, "fault_of", lambda *_: "WRONG")
    assert timer([*place, list(both[0])]) == "WRONG" and not ran


CONFIG = "fp32", "conv2d float32 ieee scattered", GemmTile(32, 16, 16, 4, 2), "cpu", "interpreter"


def test_a_right_tile(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checked tile is used in each pass of its kernel, and in no other kernel. A tile is checked once."""
    used: list[tuple[str, GemmTile]] = []

    def recording(product: Gemm, device: torch.device) -> GemmTile:
        tile = tuning.gemm_tile(product, device)
        if device.type != "meta":
            used.append((product.kernel, tile))
        return tile

    monkeypatch.setattr(pointer, "gemm_tile", recording)
    assert check.fault_of(*CONFIG) is None and check.fault_of(*CONFIG) is None
    assert [kernel for kernel, tile in used if tile == CONFIG[2]] == ["conv2d"] * 4
    assert [kernel for kernel, tile in used if tile != CONFIG[2]] == ["wgrad"] * 2


def test_wrong_tiles(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong gradient, or different bits in the second run, makes a tile wrong."""
    right = launchers.conv2d_dgrad
    monkeypatch.setattr(launchers, "conv2d_dgrad", lambda *args: right(*args) * 1.001)
    assert str(check.fault_of(*CONFIG)).startswith(f"WRONG, {SMALL_CONV.name}: input 0 is off by ")
    times = iter(range(9))
    monkeypatch.setattr(launchers, "conv2d_dgrad", lambda *args: right(*args) * (1 + 2**-23 * next(times)))
    check.fault_of.cache_clear()
    assert check.fault_of(*CONFIG) == f"WRONG, {SMALL_CONV.name}: input 0: bits differ from the checked run"


def test_unwritten_output_is_wrong(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = launchers.conv2d_dgrad
    monkeypatch.setattr(launchers, "conv2d_dgrad", lambda *args: torch.empty_like(right(*args)))
    torch.use_deterministic_algorithms(False)  # conftest turns them on
    assert "input 0 is off by nan" in str(check.fault_of(*CONFIG))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_tile_without_a_small_case_is_an_error(small: None) -> None:
    with pytest.raises(LookupError, match="no small case runs this kernel"):
        check.fault_of("fp32", "tma conv2d float32 bf16x6", *CONFIG[2:])


KINDS = """
from bench.tune import __main__ as tune, check, tiles
for arithmetic in tune.ARITHMETICS:
    wanted = tiles.products((), [arithmetic], "sm_90").values()
    reached = {name: check.kinds_of(name, arithmetic, "sm_90") for name in check.SMALL}
    print(arithmetic, "misses", *sorted(set(map(tiles.kind, wanted)) - set().union(*reached.values())))
    if arithmetic != "fp32":
        print(*sorted(reached["11x11 stride 4, 3 channels"]), sep=", ")
"""


def test_small_cases_reach_every_kind_of_product() -> None:
    """The small cases cover all products of the benchmark on Hopper. A first layer reaches the TMA kernels."""
    env = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", KINDS], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "bf16 misses", "tma conv2d bfloat16 ieee, tma wgrad bfloat16 ieee",
        "tf32 misses", "tma conv2d float32 tf32, tma wgrad float32 tf32",
        "fp32 misses",
        "fp16 misses", "tma conv2d float16 ieee, tma wgrad float16 ieee",
    ], done.stderr  # fmt: skip


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Arguments for one small convolution, with a few tiles per product."""
    monkeypatch.setitem(registry.CASES, NAME, registry.CASES[NAME].small())
    monkeypatch.setattr(tuning, "TILES", tmp_path / "tiles")
    monkeypatch.setattr(tune, "CANDIDATES", 6)
    return Namespace(names=[f"^{NAME}$"], arithmetics=["fp32"], minutes=5.0)


def run(args: Namespace, *worker: str) -> int:
    return tune.run(args, [sys.executable, "-c", *worker], "NVIDIA H200", "interpreter")


def rejected(printed: str) -> list[tuple[str, list[int], str]]:
    """Return (number of the call, tile, first word of the fault) of the rejected tiles."""
    found = re.findall(rf" left  fp32 {NAME} \w+ (\d) (\[[\d, ]+\]) ([A-Za-z]\w+)", printed)
    return [(number, json.loads(tile), fault) for number, tile, fault in found]


def stored() -> dict[str, list[int]]:
    return json.loads(tiles.path_of("NVIDIA H200").read_text())["tiles"]


# Worker on the CPU. Tiles with 5 stages do not compile, tiles with 4 stages crash, wgrad tiles with 3 stages are wrong, and
# large tiles are fast.
WORKER = f"""
import json, os, sys
if "--compile-only" in sys.argv:
    for item in map(json.loads, sys.stdin):
        print(json.dumps({{"at": item}}), flush=True)
        print(json.dumps({{"of": item, "result": "no room" if item[-1][4] == 5 else None}}), flush=True)
    sys.exit()
os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, {str(ROOT)!r})
from bench import registry
from bench.tune import check
from tests.tools.test_bench import Here, SetClock
from trinn.kernels.conv2d import pointer
from trinn.kernels.runtime import launch, tuning
from trinn.kernels.runtime.settings import settings

small = registry.CASES[{NAME!r}].small()
registry.CASES[small.name], check.SMALL = small, {{small.name: (small, "contiguous")}}

def gemm_tile(product, device):
    global stages
    stages = tuning.gemm_tile(product, device).stages
    if stages == 4 and device.type != "meta": os._exit(9)
    return tuning.gemm_tile(product, device)

def seconds(call):
    tile = settings.tile_of(None, "")
    return 1.0 / (tile.n * tile.k * tile.warps)

def launch_without_the_last_pixel(kernel, programs, *args, **constants):
    if "wgrad" in kernel.__name__ and constants["stages"] == 3:
        args = (*args[:7], args[7] - 1, *args[8:])
    launch.launch(kernel, programs, *args, **constants)

pointer.gemm_tile = gemm_tile
pointer.launch = launch_without_the_last_pixel
check.main("interpreter", Here(SetClock(seconds)))
"""


@pytest.mark.long
def test_a_run(args: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong and crashing tiles are rejected and not timed; the fastest of the others is stored."""
    assert run(args, WORKER) == 0
    printed = capsys.readouterr().out
    faults = [("no", 5), ("crashed", 4)]
    expected = [(number, [16, 16, 16, 4, stages], fault) for number in "012" for fault, stages in faults]
    assert sorted(rejected(printed)) == sorted([*expected, ("2", [16, 16, 16, 4, 3], "WRONG")])
    assert f"WRONG, {NAME}: weight is off by" in printed and "us  16x16x32 w4 s2" in printed
    fastest = {"conv2d": [16, 16, 32, 4, 2], "wgrad": [16, 32, 16, 4, 2]}
    assert len(stored()) == 3 and all(tile == fastest[key.split()[0]] for key, tile in stored().items())


# Worker that times every tile immediately.
QUICK = """
import json, sys
for item in map(json.loads, sys.stdin):
    print(json.dumps({"at": item}), flush=True)
    found = None if "--compile-only" in sys.argv else 10.0
    print(json.dumps({"of": item, "result": found}), flush=True)
"""


def test_a_run_stops_at_its_time_limit(
    args: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = itertools.count(step=10 * 60)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(now))  # each reading of the clock is ten minutes later
        args.minutes = 10 * 60
        assert run(args, QUICK) == 1
    assert 0 < int(re.findall(r"(\d+) candidates left", capsys.readouterr().out)[0]) < 18
    assert run(args, QUICK) == 0


def test_a_wrong_default_tile_fails(args: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Another tile replaces it, even a slower one. If all tiles are wrong, the stored ones stay."""
    assert run(args, QUICK.replace("found = None if", "found = 'WRONG' if item[-1][3] == 1 else None if")) == 1
    assert capsys.readouterr().out.count("THE DEFAULT TILE IS REJECTED: 16x16x16 w1 s1: WRONG") == 3
    kept = stored()
    assert len(kept) == 3
    assert run(args, QUICK.replace("10.0", "'WRONG'")) == 1 and stored() == kept


# Worker that crashes once, at a tile with 2 stages.
CRASHING = """
import json, os, sys
from pathlib import Path
for item in map(json.loads, sys.stdin):
    print(json.dumps({"at": item}), flush=True)
    compiles, marker = sys.argv[-1] == "--compile-only", Path(sys.argv[1])
    if item[-1] == [16, 16, 16, 4, 2] and not compiles and not marker.exists():
        marker.touch()
        os._exit(9)
    print(json.dumps({"of": item, "result": None if compiles else 10.0}), flush=True)
"""


def test_a_crash_rejects_the_tile_for_its_kind(args: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other product of the kind does not run the tile; products of other kinds do."""
    assert run(args, CRASHING, str(tmp_path / "marker")) == 0
    printed = capsys.readouterr().out
    assert rejected(printed) == [(number, [16, 16, 16, 4, 2], "crashed") for number in "01"]
    assert printed.count("crashed, exit status 9: ") == 2


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 1
    assert capsys.readouterr() == ("", "No GPU found.\n")


def test_compilation() -> None:
    """Worker processes compile a tile for both products of a convolution, and for the small cases."""
    items = [["bf16", "LeNet conv1 b128", "channels_last", number, [16, 64, 32, 4, 3]] for number in range(2)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.tune.check", "sm_90", "--compile-only"],
        input="".join(json.dumps(item) + "\n" for item in items), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    printed = [line for line in map(json.loads, done.stdout.splitlines()) if "of" in line]
    assert printed == [{"of": item, "result": None} for item in items], done.stderr
