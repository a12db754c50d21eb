"""The mode `report`: a run, or a folder of results, as one page of HTML."""

import contextlib
from collections.abc import Sequence

from etils import epath

from pixeldefend import __version__
from pixeldefend.experiment import (
    files,
    foreign,
    page,
    page_images,
    page_rows,
    page_runs,
)
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import Row, read_rows
from pixeldefend.experiment.workdir import Workdir, user_errors

_Told = list[tuple[str, list[dict]]]  # rows, by the name of their file


def report(config: inputs.Config, workdir: Workdir) -> None:
    """Makes an HTML page of a run or of results: tables, images, curves."""
    settings = config.report
    with user_errors():
        if not settings.input:
            raise ValueError(
                "report.input is empty: name a workdir or a folder of rows"
            )
        if settings.images < 0:
            raise ValueError(f"report.images must not be negative: {settings.images}")
        source = files.expanded(settings.input)
        if not source.is_dir():
            kind = "is a file" if source.exists() else "does not exist"
            raise ValueError(
                f"report.input {settings.input} {kind}: name the workdir of a run, or "
                "a folder of rows"
            )
        try:
            html = _page(source, _read(source), settings.images)
        except (AttributeError, LookupError) as error:  # of fields without a check
            raise ValueError(
                f"report.input {settings.input} has rows or arrays that no run wrote: "
                f"{error!r}"
            ) from error
        if not html:
            raise ValueError(
                f"report.input {settings.input} has no rows (*.jsonl) and no scores: "
                "name the workdir of a run that has ended, or a folder of results"
            )
    folder = workdir.open()
    with files.whole_file(folder / "report.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"{len(html.encode()) / 2**20:.1f} MiB in {folder / 'report.html'}")


def _read(source: epath.Path) -> _Told:
    """All rows of a folder.

    Raises:
      ValueError: a file cannot be read, or the threat model of an accuracy does not
        fit what attacked what; the message names the file and the line.
    """
    found = []
    for path in files.entries(source):
        if path.suffix != ".jsonl" or path.name.startswith("."):
            continue
        rows = read_rows(path)
        for i, row in enumerate(rows, 1):
            if "accuracy" in row and "attack" in row:
                try:
                    Row.read(row)
                except ValueError as error:
                    raise ValueError(f"{path}, line {i}: {error}") from error
        if rows:
            found.append((path.stem, rows))
    return found


def _page(source: epath.Path, told: _Told, images: int) -> str:
    """The whole page; "" where there is nothing to show."""
    sections = []
    scores = page_runs.scores(source)
    if scores:
        sections.append(("scores", "Likelihood", "", scores))
    for name, rows in told:
        element = page_runs.identifier(name)
        remark = f"{len(rows)} row" + "s" * (len(rows) != 1)
        html = page_rows.tables(element, rows)
        if name == "rows":
            html += _pictures(source, rows, images)
            title = "Measurements"
        else:
            arrays = source / "arrays" / f"{name}.npz"
            if name.startswith("detection"):
                html += page_runs.detection(arrays, rows, images)
            title = name
        sections.append((element, title, remark, html))
    if not sections:
        return ""
    rows = [row for _, of in told for row in of]
    title, above = _head(source, rows)
    body = [f"<h1>{page.text(title)}</h1>", above, _legend(rows)]
    measured = {name for name, rows in told if any(map(page_rows.is_measured, rows))}
    groups: dict[str, list[tuple]] = {"Accuracies": [], "Other measurements": []}
    for entry in sections:
        main = entry[1] in measured or entry[0] == "rows"
        groups["Accuracies" if main else "Other measurements"].append(entry)
    for group, entries in groups.items() if len(sections) > 2 else ():
        if entries:
            body.append(page.contents(group, [entry[:3] for entry in entries]))
    body += [page.section(*entry) for entries in groups.values() for entry in entries]
    body.append(
        f'<footer class="dim">Made by pixeldefend {page.text(__version__)}, '
        "<code>--mode=report</code>. Intervals are of 95 % (Wilson’s for accuracies)."
        "</footer>"
    )
    return page.document(title, "\n".join(body))


def _pictures(source: epath.Path, rows: Sequence[dict], images: int) -> str:
    """What a workdir keeps besides its rows."""
    if html := page_runs.detection(source / "detection.npz", rows, images):
        return html
    strips = page_runs.strips(source, rows) if images else []
    each = max(1, images // max(len(strips), 1))
    return "".join(page_images.cards(strip, each) for strip in strips)


def _head(source: epath.Path, rows: Sequence[dict]) -> tuple[str, str]:
    """The title, and as HTML what was run."""
    told: dict = {}
    path = source / "config.json"
    if path.exists():
        with contextlib.suppress(TypeError):
            told = dict(foreign.read_json(path))
    name = files.absolute(source).name
    title = f"{told['mode']} on {told.get('dataset')}" if "mode" in told else name
    facts = [("folder", page.text(name))] if "mode" in told else []
    facts.append(("rows", str(len(rows))))
    for field, word in (
        ("dataset", "data sets"),
        ("version", "version"),
        ("device", "device"),
        ("config", "config hash"),
    ):
        known = list(dict.fromkeys(str(row[field]) for row in rows if row.get(field)))
        if known and (len(known) < 6 or field == "dataset"):
            facts.append((word, page.text(", ".join(known))))
        elif known:
            facts.append((word, f"{len(known)}, see the rows"))
    above = page.facts(facts)
    if "mode" in told:
        command = page.text(page_runs.command(told, rows))
        above += page.folded(
            "The command, with every field that the results depend on",
            f"<pre>{command}</pre>",
        )
    return title, above


def _legend(rows: Sequence[dict]) -> str:
    """Who attacks, of the threat models that are on the page."""
    known = {page_rows.label(row) for row in rows}
    entries = "".join(
        f"<dt>{page.tag(name)}</dt><dd>{page.text(meaning)}</dd>"
        for name, meaning in page_rows.THREATS.items()
        if name in known
    )
    return f'<dl class="threats">{entries}</dl>' if entries else ""
