"""Rows as tables of a page: every accuracy with its interval and who attacked."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from pixeldefend import attacks
from pixeldefend.experiment import page
from pixeldefend.experiment.grid import CLEAN
from pixeldefend.experiment.page import Cell, Column
from pixeldefend.experiment.rows import WORST

THREATS = {
    "white-box": "the attacker saw the classifier and every defence in front of it",
    "grey-box": "the attacker saw the classifier, but not all of the defence (what the "
    "PixelDefend paper calls “white-box”); attacks through the defence do more harm",
    "transfer": "the attacker saw only another classifier",
    "no attacker": "random changes that ignore the model",
    "clean": "images without an attack",
    "not recorded": "the rows do not say what the attacker saw, so they are no measure "
    "of robustness",
}
# Of rows without a threat model, the fields that may be mistaken for a robustness.
_DOUBTFUL = {"accuracy", "attack", "attacked", "clean", "component", "mended"}
_SHARES = ("rejected", "mended")  # whose interval is `low` to `high`
_IDENTITY = {"attack", "defence", "threat"}
_UNITS = {
    "eps_defend": "purifier’s ε, levels",
    "threshold": "adaptive threshold, bits/dim",
    "dataset": "data set",
    "config": "config hash",
    "bits_per_dim": "bits/dim",
    "half_width_95": "± (95 %), bits/dim",
    "false_positive_rate": "false-positive rate",
    "input": "images from",
    "table_eps": "table’s ε, levels",
}
# Seen without asking for all columns, of those that are not made up of several fields.
_FIRST = ("eps_defend", "grades", "device", "config")


def is_measured(row: dict) -> bool:
    """Whether a row says who attacked what behind which defence."""
    return _IDENTITY <= row.keys()


def label(row: dict) -> str:
    """The threat model of a row, a key of `THREATS`."""
    if row.get("threat"):
        return str(row["threat"])
    if "detector" in row or row.get("attack") == CLEAN:  # calibrated on clean images
        return "clean"
    return "no attacker" if is_measured(row) else "not recorded"


def tables(name: str, rows: Sequence[dict]) -> str:
    """All rows of a file as HTML.

    Args:
      name: for the elements, of which it is the beginning.
      rows: from `rows.read_rows`, in order.
    """
    measured = [row for row in rows if is_measured(row)]
    kinds: dict[tuple, list[dict]] = {}
    for row in rows:
        if not is_measured(row):
            kinds.setdefault(tuple(row), []).append(row)
    parts = [_of_measured(f"{name}-table", measured)] if measured else []
    if any(
        label(group[0]) == "not recorded" and _DOUBTFUL & set(kind)
        for kind, group in kinds.items()
    ):
        parts.append(
            f"<p>{page.tag('not recorded')} <small>Threat model of these rows: "
            f"{page.text(THREATS['not recorded'])}.</small></p>"
        )
    for i, group in enumerate(kinds.values()):
        if len(group) > 1:
            parts.append(_of_others(f"{name}-table-{i}", group))
    single = [group[0] for group in kinds.values() if len(group) == 1]
    if single:
        each = (
            page.fields([(_title(k), _field(row, k)) for k in row]) for row in single
        )
        parts.append(f'<div class="cards">{"".join(each)}</div>')
    return "\n".join(parts)


def _of_measured(name: str, rows: list[dict]) -> str:
    columns: list[tuple[Column, bool]] = []  # and whether it stays where all are alike
    used = {"threat", "low", "high", "accuracy", *_IDENTITY}
    for title, needs, make, stays in _COLUMNS:
        if not any(needs[0] in row for row in rows):
            continue
        used |= set(needs)
        cells = [
            make(row) if needs[0] in row else Cell(page.NOTHING, "") for row in rows
        ]
        columns.append((Column(title, cells), stays))
    rest = list(dict.fromkeys(key for row in rows for key in row if key not in used))
    for key in sorted(rest, key=lambda key: key not in _FIRST):
        cells = [_value(row.get(key)) for row in rows]
        extra = key not in _FIRST
        columns.append((Column(_title(key), cells, extra), False))
    return _folded(name, columns, f"{len(rows)} accuracies")


def _of_others(name: str, rows: list[dict]) -> str:
    share = next((key for key in _SHARES if key in rows[0]), "")
    hidden = {"low", "high"} if share else set()
    columns = [
        (
            Column(_title(key), [_field(row, key) for row in rows]),
            key == share,
        )
        for key in rows[0]
        if key not in hidden
    ]
    return _folded(name, columns, f"{len(rows)} rows")


def _folded(name: str, columns: list[tuple[Column, bool]], told: str) -> str:
    """A table; columns that are the same all the way down are told once, above it."""
    shown: list[Column] = []
    alike: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for column, stays in columns:
        if stays or len({cell.html for cell in column.cells}) > 1:
            shown.append(column)
        elif column.cells[0].html != page.NOTHING:
            alike[column.extra].append((column.title, column.cells[0].html))
    above = page.facts(alike[False])
    if alike[True]:
        more = page.facts(alike[True])
        above += page.folded(
            f"{len(alike[True])} more fields that all rows share", more
        )
    if not shown:
        shown = [
            Column("row", [page.number(1 + i) for i in range(len(columns[0][0].cells))])
        ]
    return above + page.table(name, shown, told)


def _title(key: str) -> str:
    return _UNITS.get(key, key.replace("_", " "))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def share(value: float, low: float | None, high: float | None, who: str) -> Cell:
    """A share in percent with its 95 % interval and the threat model.

    Args:
      value: a fraction.
      low, high: the interval's ends; None for none.
      who: a key of `THREATS`.
    """
    interval, bar = "", ""
    if low is not None and high is not None:
        interval = f"<i>{100 * low:.1f} to {100 * high:.1f}</i>"
        ends = f"--l:{100 * low:.1f}%;--h:{100 * high:.1f}%;--m:{100 * value:.1f}%"
        bar = f'<span class="bar" style="{ends}"><u></u><s></s></span>'
    whole = f"<b>{_percent(value)}</b> {interval} {page.tag(who)}"
    shown = f'<span class="share">{whole}</span>{bar}'
    return Cell(shown, value, "a")


def _accuracy(row: dict) -> Cell:
    return share(row["accuracy"], row.get("low"), row.get("high"), label(row))


def _attack(row: dict) -> Cell:
    """What attacked, and what it looked at, where that is not the row's classifier."""
    attack = row["attack"]
    if attack == CLEAN:
        return Cell("clean", " ")  # before all others
    if attack == WORST:
        return Cell("every attack, per image")
    told = [page.text(attack)]
    if row.get("preset"):
        told.append(f"<small>{page.text(row['preset'])}</small>")
    source, through = row.get("source"), row.get("through")
    if source and source != row.get("classifier"):
        told.append(f"<small>on {page.text(source)}</small>")
    if through and through != "classifier":
        slope = f", {page.text(row['slope'])}" if row.get("slope") else ""
        told.append(f"<small>through {page.text(through)}{slope}</small>")
    return Cell(" ".join(told))


def eps(row: dict) -> str:
    """An attack's eps with its unit, where that is not levels in L-infinity."""
    if row["attack"] == CLEAN:
        return page.NOTHING
    if row["eps_attack"] is None:
        return "no bound"
    known = attacks.ATTACKS.get(row["attack"])
    norm = {"l2": " (L2)", "l0": " values (L0)"}.get(known.norm if known else "", "")
    return f"{row['eps_attack']:g}{norm}"


def _eps(row: dict) -> Cell:
    bound = row["eps_attack"]
    key = "" if row["attack"] == CLEAN else float("inf") if bound is None else bound
    return Cell(page.text(eps(row)), key if key != float("inf") else 1e9, "n")


def _plus_minus(row: dict) -> Cell:
    half = row.get("half_width_95")
    told = f"{row['bits_per_dim']:.3f}" + (f" ± {half:.3f}" if half is not None else "")
    return page.number(row["bits_per_dim"], told)


def _moved(row: dict) -> Cell:
    most = row.get("distance_max")
    told = f"{row['distance']:.1f}" + (f" ({most})" if most is not None else "")
    return page.number(row["distance"], told)


def _plain(key: str, form: Callable[[float], str]) -> Callable[[dict], Cell]:
    return lambda row: page.number(row[key], form(row[key]))


def _three(value: float) -> str:
    return f"{value:.3f}"


# Title, the fields that it tells (the first has to be there), how, and whether it stays
# where it is the same for all rows.
_COLUMNS: tuple[tuple[str, tuple[str, ...], Callable[[dict], Cell], bool], ...] = (
    ("data set", ("dataset",), lambda row: page.said(row["dataset"]), False),
    ("classifier", ("classifier",), lambda row: page.said(row["classifier"]), False),
    ("defence", ("defence",), lambda row: page.said(row["defence"]), True),
    ("attack", ("attack", "preset", "source", "through", "slope"), _attack, True),
    ("ε, levels", ("eps_attack",), _eps, True),
    ("accuracy (95 %), threat model", ("accuracy",), _accuracy, True),
    ("n", ("n",), _plain("n", str), True),
    ("bits/dim ± (95 %)", ("bits_per_dim", "half_width_95"), _plus_minus, False),
    ("median p-value", ("p_value",), _plain("p_value", lambda p: f"{p:.4f}"), False),
    ("p < 0.05", ("p_below_0.05",), _plain("p_below_0.05", _percent), False),
    ("AUC", ("auc",), _plain("auc", _three), False),
    ("two-sided AUC", ("auc_two_sided",), _plain("auc_two_sided", _three), False),
    (
        "L∞ from clean (largest)",
        ("distance", "distance_max"),
        _moved,
        False,
    ),
)


def _value(value: Any) -> Cell:
    """Any field."""
    if isinstance(value, bool):
        return page.said("yes" if value else "no")
    if isinstance(value, int | float):
        return page.number(value)
    if isinstance(value, list) and len(value) <= 4 and all(map(_is_scalar, value)):
        return page.said(
            ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in value)
        )
    if (
        isinstance(value, dict)
        and len(value) <= 4
        and all(map(_is_scalar, value.values()))
    ):
        told = (
            f"{k}: {v:.6g}" if isinstance(v, float) else f"{k}: {v}"
            for k, v in value.items()
        )
        return page.said("; ".join(told))
    if isinstance(value, dict | list):
        whole = page.text(json.dumps(value, indent=1))
        return Cell(
            f"<details><summary>{len(value)} entries</summary>"
            f"<pre>{whole}</pre></details>",
            len(value),
        )
    return page.said(value)


def _field(row: dict, key: str) -> Cell:
    """A field of a row that names no attacker."""
    value = row[key]
    if key in _SHARES and isinstance(value, float) and "low" in row:
        return share(value, row["low"], row["high"], label(row))
    return _value(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)
