"""`make notes` prints what tests/notes.txt holds: `python examples/notes.py > tests/notes.txt` after a change."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Sections of random numbers, which another machine may draw otherwise: how many there are, and what stands around them.
RANDOM = {"2.3.1", "2.4.1", "2.4.2", "2.4.3"}


def sections(text: str) -> dict[str, str]:
    """The text of each section by its number; a random number is a sign, and a table as wide as it likes."""
    parts = re.split(r"^(2\.\d\.\d(?: \d\))?(?: \w\.)?)  ", text, flags=re.MULTILINE)
    assert not parts[0]
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: shape(text) if name in RANDOM else text for name, text in texts.items()}


def shape(text: str) -> str:
    return re.sub(r" +", " ", re.sub(r"-{2,}", "--", re.sub(r"-?\d\.\d{4}", "#", text)))


def test_walks_the_notes_in_order() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "notes.py")]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    got, expected = sections(done.stdout), sections((ROOT / "tests" / "notes.txt").read_text())
    assert list(got) == list(expected) == sorted(got) and len(got) == 16
    for name in got:
        assert got[name] == expected[name], name
