"""docs/evidence.md is up to date with docs/evidence/."""

from tests.evidence import PAGE, SECTIONS, render


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "run python -m tests.evidence to regenerate the page"


def test_every_stored_file_has_a_section() -> None:
    assert {path.stem for path in (PAGE.parent / "evidence").glob("*.json")} <= set(SECTIONS)
