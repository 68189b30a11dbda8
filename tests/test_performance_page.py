"""docs/performance.md says what the figures in bench/results say."""

import re
from pathlib import Path


def test_the_page_is_what_the_figures_give(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    from card import page

    assert page.PAGE.read_text() == page.page(), "write it anew: python bench/card/page.py"


def test_figures_stay_apart_from_the_machines_they_were_taken_on():
    for path in (Path(__file__).parent.parent / "bench/results").glob("*-gpu-*.jsonl"):
        text = path.read_text()
        assert not re.findall("/(?:opt|root|home|tmp)/", text), path.name
