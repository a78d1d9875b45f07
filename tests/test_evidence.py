from tests.evidence import PAGE, SECTIONS, render


def test_page_is_what_the_figures_render_to() -> None:
    assert PAGE.read_text() == render(), "python -m tests.evidence writes it anew"


def test_every_stored_figure_is_shown() -> None:
    assert {path.stem for path in (PAGE.parent / "evidence").glob("*.json")} <= set(SECTIONS)
