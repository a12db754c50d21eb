"""The pages hold the numbers of `results/` and of the cards, and no others."""

import dataclasses
import json
import re

import pytest

from pixeldefend.experiment import rows
from pixeldefend.experiment.workdir import RESULTS
from reproduction import measured, pages

_DOCS = pages.ROOT / "docs"
_RESULTS = [f"docs/results/{page.name}" for page in (_DOCS / "results").glob("*.md")]
_ALL = ["README.md", *_RESULTS, *(f"docs/{page.name}" for page in _DOCS.glob("*.md"))]


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_says_what_results_say(name):
    text = (pages.ROOT / name).read_text()
    assert pages.filled(text) == text, "run python -m reproduction.pages"


@pytest.mark.parametrize("name", pages.PAGES)
def test_no_measured_number_stands_outside_the_places(name):
    text = pages._PLACE.sub("", (pages.ROOT / name).read_text())
    assert "<!-- begin" not in text and "<!-- end" not in text
    # Accuracies, bits/dim with their intervals and ratios; the papers' are whole.
    measured = r"\d+\.\d+ ?%|± ?\d|\*\*\d+\.\d+\*\*|\d\.\d\d+ bits"
    found = re.findall(measured, text)
    assert found == []


_MEASURED = (
    "accuracy",
    "attacked",
    "auc",
    "bits_per_dim",
    "hours",
    "images_per_second",
    "norm",
    "ours",
    "ratio",
    "ratio_to_forward",
    "rejected",
    "right",
    "threshold",
    "times_pixeldefend",
)


def _changed(value, key=None):
    """The same results, a little different wherever something was measured."""
    if isinstance(value, dict):
        kept = {k: _changed(v, k) for k, v in value.items() if k != "curve"}
        return value | kept
    if isinstance(value, list):
        return [_changed(item, key) for item in value]
    if key in (*_MEASURED, "table_seconds") and isinstance(value, float):
        return value * 0.9 + 0.05
    return value


@pytest.mark.parametrize("place", pages.PLACES)
def test_a_changed_result_changes_its_place(place, monkeypatch):
    before = pages.PLACES[place]()
    for name in ("read", "card"):
        whole = getattr(measured, name)
        monkeypatch.setattr(measured, name, lambda n, whole=whole: _changed(whole(n)))
    assert pages.PLACES[place]() != before


def test_results_of_other_weights_are_refused(monkeypatch):
    rows = measured.read("purify_fashion_mnist")
    rows[0]["classifier_sha256"] = "00000000"
    monkeypatch.setattr(measured, "read", lambda _: rows)
    with pytest.raises(ValueError, match="released anew: measure again"):
        measured.rows("purify_fashion_mnist")
    with pytest.raises(ValueError, match="released anew: measure again"):
        pages.PLACES["main_job_fashion_mnist"]()


def test_templates_name_fields_and_what_is_derived_from_them():
    row = {"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 12345}
    assert (
        measured.told("{interval}, n {n:,}", row) == "50.0 % (25.0 to 75.0), n 12 345"
    )
    assert measured.told(
        "{a[accuracy]:.0%} {a[interval]} {b}", {"a": row, "b": None}
    ) == ("50 % 50.0 % (25.0 to 75.0) None")
    with pytest.raises(KeyError, match="missing"):
        measured.told("{missing}", row)
    columns = {"share": "{accuracy:.1%}", "n": lambda row: row["n"] + 1}
    assert measured.table([row], columns).splitlines()[2] == "| 50.0 % | 12346 |"


def _anchors(page):
    """Of a page's headings, as they are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", sorted(_ALL))
def test_links_lead_somewhere(name):
    page = pages.ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        to = page.parent / path if path else page
        assert to.exists(), link
        assert not anchor or anchor in _anchors(to), link


def test_the_readme_is_one_page_that_leads_to_all_others():
    text = (pages.ROOT / "README.md").read_text()
    assert len(text.encode()) <= 8192
    results = (_DOCS / "results/index.md").read_text()
    for name in {*_ALL} - {"README.md"}:
        own = name.rpartition("/")[2]
        assert f"]({name})" in text or name in _RESULTS and f"]({own})" in results, name


@pytest.mark.parametrize("name", sorted({*_ALL} - {*pages.PAGES}))
def test_pages_that_are_not_filled_have_no_places(name):
    assert "<!-- begin" not in (pages.ROOT / name).read_text()


def test_every_place_is_on_a_page_and_known():
    text = "".join((pages.ROOT / name).read_text() for name in pages.PAGES)
    names = set(re.findall(r"<!-- begin: (\w+) -->", text))
    assert names == set(pages.PLACES)
    with pytest.raises(ValueError, match="nothing fills the place 'x'"):
        pages.filled("<!-- begin: x -->\n<!-- end -->")


def test_file_formats_name_every_field_of_a_row_a_card_and_every_file():
    page = (pages.ROOT / "docs/reference/formats.md").read_text()
    told = set(re.findall(r"`([^`\n]+)`", page))
    fields = {field.name for field in dataclasses.fields(rows.Row)} - {"figures"}
    assert not (fields | set(rows.FIGURES)) - told
    cards = pages.ROOT.glob("pixeldefend/released/*/*/card.json")
    assert not {name for card in cards for name in json.loads(card.read_text())} - told
    files = {name.split("/")[0] for name in told}
    assert not RESULTS - files - {"figures"}
