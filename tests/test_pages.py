"""README and RESULTS hold the numbers of `results/` and of the cards, and no others."""

import re

import pytest

from benchmarks import pages


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_says_what_results_say(name):
    text = (pages.ROOT / name).read_text()
    assert pages.filled(text) == text, "run python -m benchmarks.pages"


@pytest.mark.parametrize("name", pages.PAGES)
def test_no_measured_number_stands_outside_the_places(name):
    text = pages._PLACE.sub("", (pages.ROOT / name).read_text())
    assert "<!-- begin" not in text and "<!-- end" not in text
    # Accuracies, bits/dim with their intervals and ratios; the papers' are whole.
    found = re.findall(r"\d+\.\d+ ?%|± ?\d|\*\*\d+\.\d+\*\*", text)
    assert found == []


def test_a_changed_result_is_noticed(monkeypatch):
    text = (pages.ROOT / "RESULTS.md").read_text()
    read = pages.read

    def other(name):
        rows = read(name)
        for row in rows:
            if row.get("attack") == "bim":
                row["accuracy"] += 0.01
        return rows

    monkeypatch.setattr(pages, "read", other)
    assert pages.filled(text) != text


def test_every_place_is_on_a_page_and_known():
    text = "".join((pages.ROOT / name).read_text() for name in pages.PAGES)
    names = set(re.findall(r"<!-- begin: (\w+) -->", text))
    assert names == set(pages.PLACES)
    with pytest.raises(ValueError, match="nothing fills the place 'x'"):
        pages.filled("<!-- begin: x -->\n<!-- end -->")
