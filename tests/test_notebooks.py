"""The notebooks: as they lie here, and run cell by cell."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, environment

from configs import cifar10

_BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_NAMES = ["judge_a_defence", "purify_your_pictures", "train_on_your_data"]
_INSTALL = "%pip install --quiet .. matplotlib"
# What stands for IPython: pictures are kept, and a command that fails ends the run.
_BEFORE = """
import pathlib
import subprocess

import matplotlib.pyplot


def _keep():
    count = len(list(pathlib.Path().glob("figure_*.png")))
    matplotlib.pyplot.savefig(f"figure_{count}.png", dpi=100)
    matplotlib.pyplot.close("all")


def _shell(command):
    subprocess.run(command, shell=True, check=True)


matplotlib.pyplot.show = _keep
"""


def _cells(path, kind):
    """The text of each cell of a kind."""
    book = json.loads(path.read_text())
    return ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == kind]


def _script(path):
    """All code cells as one program, without the line that installs.

    Raises:
      ValueError: a line for IPython that is not known here.
    """
    found = [_BEFORE]
    for cell in _cells(path, "code"):
        for line in cell.replace("\\\n", "").splitlines():
            if line.startswith("!"):
                line = f"_shell({line[1:]!r}.format(**globals()))"
            elif line == _INSTALL:
                line = ""
            elif line.startswith(("%", "?")) or line.endswith("?"):
                raise ValueError(f"not known here: {line}")
            found.append(line)
    return "\n".join(found) + "\n"


def test_these_notebooks_are_there():
    assert [path.stem for path in _BOOKS] == _NAMES


@pytest.mark.parametrize("path", _BOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_has_no_outputs(path):
    text = path.read_text()
    book = json.loads(text)
    again = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    assert text == again, "written as Jupyter writes it, so that a diff shows changes"
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    for cell in book["cells"]:
        code = cell["cell_type"] == "code"
        assert code or cell["cell_type"] == "markdown"
        own = {"execution_count", "outputs"} if code else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | own
        assert cell["metadata"] == {} and cell["source"]
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        assert not code or (cell["outputs"], cell["execution_count"]) == ([], None)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]{1,64}", one) for one in ids)
    assert book["cells"][0]["source"][0].startswith("# ")
    paths = re.findall(r"(?<![\w.:/)])/(?:home|root|tmp|Users|work|content)\b", text)
    assert not paths


@pytest.mark.parametrize("path", _BOOKS, ids=lambda path: path.stem)
def test_only_the_first_code_cell_installs(path):
    first, *others = _cells(path, "code")
    assert first.splitlines()[-1] == _INSTALL
    assert all(line.startswith("#") for line in first.splitlines()[:-1])
    assert not any(re.search(r"^%|pip|git\+|https?:", cell, re.M) for cell in others)
    compile(_script(path), path.name, "exec")


@pytest.mark.parametrize("path", _BOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_links_to_is_there(path):
    text = "\n\n".join(_cells(path, "markdown"))
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 3
    for link in links:
        if not link.startswith("https://"):
            to, _, anchor = link.partition("#")
            page = path.parent / to
            assert page.is_file(), link
            headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
            slugs = [re.sub(r"[^\w -]", "", h.lower()) for h in headings]
            assert not anchor or anchor in [h.replace(" ", "-") for h in slugs], link


@pytest.mark.parametrize("page", ["README.md", "docs/notebooks.md"])
def test_pages_lead_to_the_notebooks(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    here = (ROOT / page).parent
    leads = {(here / link).resolve() for link in links if link.endswith(".ipynb")}
    if page == "README.md":  # a line that has room for one link
        assert "docs/notebooks.md" in links
    else:
        assert leads == {path.resolve() for path in _BOOKS}


def test_the_wheel_is_made_without_notebooks():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'include = ["pixeldefend*"]' in text
    assert not list((ROOT / "pixeldefend").rglob("*.ipynb"))


def test_the_grades_are_those_of_the_config():
    (cell,) = (c for c in _cells(_BOOKS[1], "code") if "GRADES = " in c)
    its = {}
    exec(cell.partition("purifier = ")[0], its)
    assert its["GRADES"] == cifar10.get_config().purify.grades


def _run(name, folder):
    """What a notebook prints, and the pictures that it shows, as arrays."""
    script = folder / f"{name}.py"
    script.write_text(_script(ROOT / f"notebooks/{name}.ipynb"))
    python = pathlib.Path(sys.executable).parent  # for lines of the shell
    own = environment() | {
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    shown = []
    for path in sorted(folder.glob("figure_*.png")):
        with Image.open(path) as picture:
            shown.append(np.asarray(picture.convert("RGB")))
    assert all(picture.std() > 5 for picture in shown)
    return done.stdout, shown


@pytest.mark.slow
def test_pictures_are_purified(tmp_path):
    told, shown = _run("purify_your_pictures", tmp_path)
    table = re.findall(
        r"^(\w+) +(\d) of 8 +(\d\.\d\d) +(\d\.\d{3}) +(\d) of 8$", told, re.M
    )
    clean, attacked, purified = (list(map(float, row[1:])) for row in table)
    assert [row[0] for row in table] == ["clean", "attacked", "purified"]
    assert clean[0] > purified[0] > attacked[0] == 0  # right
    assert attacked[1] > clean[1] > purified[1]  # bits/dim
    assert attacked[2] < clean[2] < purified[2]  # p-values
    assert attacked[3] > 4 and clean[3] < 3 and purified[3] == 0  # suspicious
    assert len(shown) == 2
    files = sorted((tmp_path / "purified").glob("*.png"))
    assert [file.stem for file in files] == [f"sample_{i:03d}" for i in range(8)]


@pytest.mark.slow
def test_defences_are_judged(tmp_path):
    told, shown = _run("judge_a_defence", tmp_path)
    lines = re.findall(
        r"^(\w+) .* (\d+\.\d) \(\d+\.\d to \d+\.\d\)  8 +\d+$", told, re.M
    )
    names = ["none", "auto_attack", "auto_attack", "apgd", "apgd", "worst"]
    assert [name for name, _ in lines] == names * 2
    shares = [float(share) for _, share in lines]
    for its in (shares[:6], shares[6:]):
        clean, bare, transfer, through, unbounded, worst = its
        assert bare <= clean and worst <= min(transfer, through) and unbounded == 0
    assert "Threat model: L-infinity, eps 8 levels" in told
    assert "this was a glance" in told
    assert len(shown) == 1


@pytest.mark.slow
def test_models_of_own_data_are_trained(tmp_path):
    told, shown = _run("train_on_your_data", tmp_path)
    assert "12 test images of 3 classes: cross, disc, stripes" in told
    table = re.findall(r"^(\w+) +(\d+)% right, (\d\.\d\d) bits/dim", told, re.M)
    clean, attacked, purified = ((int(row[1]), float(row[2])) for row in table)
    assert clean[0] >= 75 and attacked[0] < clean[0]
    assert attacked[1] > clean[1] < 6 and purified[1] < attacked[1]
    assert len(shown) == 3
    assert (tmp_path / "released/shapes/pixelcnn/reference.npy").exists()
    assert (tmp_path / "runs/shapes/classifier/model/card.json").exists()
