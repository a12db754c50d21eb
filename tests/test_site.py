"""The documentation as a site."""

import importlib.util
import re
import subprocess
import sys

import pytest
from processes import ROOT

import pixeldefend

_SETTINGS = (ROOT / "mkdocs.yml").read_text()
_NAV = set(re.findall(r"^ +- .*?([\w/]+\.md)$", _SETTINGS, re.M))


def test_every_page_is_in_the_navigation():
    docs = ROOT / "docs"
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    assert pages and pages <= _NAV


def test_every_package_has_one_version():
    """The site is built where the tests run."""
    text = "".join(file.read_text() for file in ROOT.glob("requirements*.txt"))
    pins = set(re.findall(r"^(\S+)==(\S+)$", text, re.M))
    assert len(pins) == len(dict(pins))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site."""
    for name in ("material", "mkdocs", "mkdocstrings_handlers"):
        if not importlib.util.find_spec(name):
            pytest.skip("without requirements-docs.txt")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.mark.slow
def test_pages_show_their_figures_and_fetch_nothing_from_elsewhere(site):
    for name in _NAV:
        page = site / name.replace("README", "index").replace(".md", ".html")
        shown = re.findall(
            r'<(?:img|script|link) [^>]*(?:src|href)="([^"]+)', page.read_text()
        )
        for file in shown:
            assert (page.parent / file).exists(), (name, file)
    text = (site / "index.html").read_text()
    assert text.count("<img ") == (ROOT / "README.md").read_text().count("![") > 0


@pytest.mark.slow
def test_what_is_public_is_in_the_reference(site):
    text = "".join(page.read_text() for page in site.glob("reference/*.html"))
    for module in (pixeldefend, pixeldefend.attacks):
        for name in {*module.__all__} - {"ATTACKS", "LogitsFn", "PARTS"}:
            assert re.search(rf'id="pixeldefend\.(\w+\.)*{name}"', text), name
    assert "<code>purify.eps</code>" in text
