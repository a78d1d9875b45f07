"""`make notes` prints the text of notes.txt. Run `python examples/notes.py > tests/tools/notes.txt` after a change."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Sections with random numbers. Another machine may draw other numbers, so the test compares their count and the other text.
RANDOM = {"2.3.1", "2.4.1", "2.4.2", "2.4.3"}


def sections(text: str) -> dict[str, str]:
    """Map section numbers to texts. In the RANDOM sections, hide random numbers and the widths of tables."""
    parts = re.split(r"^(2\.\d\.\d(?: \d\))?(?: \w\.)?)  ", text, flags=re.MULTILINE)
    assert not parts[0]
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: masked(text) if name in RANDOM else text for name, text in texts.items()}


def masked(text: str) -> str:
    return re.sub(r" +", " ", re.sub(r"-{2,}", "--", re.sub(r"-?\d\.\d{4}", "#", text)))


def test_output_matches_notes_txt() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "notes.py")]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    got, expected = sections(done.stdout), sections((ROOT / "tests" / "tools" / "notes.txt").read_text())
    assert list(got) == list(expected) == sorted(got) and len(got) == 16
    for name in got:
        assert got[name] == expected[name], name
