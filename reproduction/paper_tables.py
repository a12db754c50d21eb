"""Tables about PixelDefend, from rows: the paper's, and of who looks through it."""

import dataclasses
from collections.abc import Callable

from configs import cifar10, fashion_mnist
from pixeldefend.experiment import grid, published, report, summaries, tables
from pixeldefend.experiment.rows import WORST
from reproduction import comparing, drifting, measured
from reproduction.measured import table, told


def main_job(name: str) -> str:
    """The table that `--mode=purify` printed, from its rows."""
    clean, attacked, purified = rows = measured.rows(name)
    attack = f"{attacked['attack'].upper()}, eps {attacked['eps_attack']:g}"
    ball = f"{'up to ' * ('grades' in purified)}{purified['eps_defend']}"
    names = ("clean", attack, f"purified, eps {ball}")
    shown = summaries.purification_table(dict(zip(names, rows, strict=True)))
    who = (
        f"{clean['n']} images, {attacked['source']}, {purified['threat']}, "
        f"on {clean['device']}"
    )
    if "grades" in purified:
        who += f"\neps by bits/dim: {purified['grades']}"
    if "mirror" in purified["defence"]:
        who += "\nthe classifier sees purified images mirrored"
    return f"```\n{shown}\n{who}\n```"


def table_of(dataset: str) -> tables.Table:
    """The paper's Table 1 (Fashion-MNIST) or 2 (CIFAR-10)."""
    configs = {"fashion_mnist": fashion_mnist, "cifar10": cifar10}
    config = configs[dataset].get_config().evaluate
    layout = grid.read(config.rows, config.attacks, config.eps_attack)
    return tables.Table(layout, measured.rows(f"evaluate_{dataset}"), dataset)


def paper_table(dataset: str) -> str:
    """That table, ours beside the paper's.

    Raises:
      ValueError: a cell that has not been measured, or with other weights.
    """
    found = table_of(dataset)
    for eps in found.layout.eps:
        for line in found.lines(eps)[1]:
            if "" in line:
                raise ValueError(f"not all of {line[0]} is measured at eps {eps:g}")
    return found.show(report.markdown_table)


def paper_table_made(dataset: str) -> str:
    """How that table was made."""
    clean, *_ = measured.rows(f"evaluate_{dataset}", attack=grid.CLEAN)
    fewer: dict[int, dict[str, None]] = {}  # names by n, in order
    for row in measured.rows(f"evaluate_{dataset}"):
        if row["n"] < clean["n"] and row["attack"] != WORST:
            fewer.setdefault(row["n"], {})[row["attack"]] = None
    told_fewer = "; ".join(f"{', '.join(names)}: {n}" for n, names in fewer.items())
    hours = clean["table_seconds"] / 3600
    return (
        f"n = {clean['n']} ({clean['input']} images; {told_fewer}), "
        f"{clean['device']}, {hours:.1f} hours after compilation, beside other work."
    )


def filters(dataset: str) -> str:
    """Every purifier beside the best filter that is as gentle to clean images."""
    found = table_of(dataset)
    layout, first = found.layout, found.layout.eps[0]
    rows = {text: grid.pipeline(text, first) for text in layout.rows}
    clean = {text: found.cell(text, grid.CLEAN, first).ours for text in rows}
    sizes = [f"eps {eps:g}" for eps in layout.eps]
    lines = []
    for text, row in rows.items():
        if not row.purifies:
            continue
        gentle = [
            other
            for other, its in rows.items()
            if its.classifier == row.classifier
            and its.defences
            and not its.models
            and clean[other] >= clean[text]
        ]
        line = [text, f"{clean[text]:.1f}"]
        for eps in layout.eps:
            line.append(str(ours(found.cell(text, tables.STRONGEST, eps))))
            cells = {o: found.cell(o, tables.STRONGEST, eps) for o in gentle}
            best = max(cells, key=lambda other: cells[other].ours, default=None)
            name = best and " + ".join(rows[best].defences)
            line.append(f"{ours(cells[best])}, {name}" if best else "none as gentle")
        lines.append(line)
    header = ["purifier", "clean"]
    for size in sizes:
        header += [f"{size}, strongest", f"{size}, the best filter as gentle"]
    return report.markdown_table(header, lines)


def ours(cell: tables.Cell) -> tables.Cell:
    """Without the paper's number."""
    return dataclasses.replace(cell, paper=None)


def departures(found: tables.Table) -> list[list[str]]:
    """Cells that differ from the paper's by more than their interval and 5 points.

    Returns:
      Lines of row, attack, eps, ours with its interval, the paper's, difference.
    """
    return [
        [
            str(grid.pipeline(text, eps)),
            tables.TITLES.get(name, name),
            f"{eps:g}",
            f"{cell.ours:.1f} ({cell.low:.1f} to {cell.high:.1f})",
            f"{cell.paper:.0f}",
            f"{cell.difference:+.1f}",
        ]
        for eps in found.layout.eps
        for text in found.layout.rows
        for name in found.columns()
        if (cell := found.cell(text, name, eps)) is not None and cell.departs
    ]


def paper_departures(dataset: str) -> str:
    """Cells that are not the paper's."""
    header = ["row", "attack", "eps", "ours (95 %)", "paper", "difference"]
    return report.markdown_table(header, departures(table_of(dataset)))


def threshold(dataset: str) -> str:
    """How the adaptive threshold was chosen."""
    card = measured.card(f"{dataset}/pixelcnn")
    found = card["adaptive"]
    line = told(
        "`{name}`: **{adaptive[threshold]:.2f} bits/dim**, "
        "on the first {adaptive[n]} {adaptive[input]} images.",
        card,
    )
    lines = summaries.threshold_lines(found["curve"], found["threshold"])
    return f"{line}\n\n{report.markdown_table(*lines)}"


def section_4_4() -> str:
    """BIM through the unrolled purifier."""
    columns = {
        "slope of the purifier": lambda row: row["slope"] or "not seen (grey-box)",
        "accuracy": "{interval}, n {n}",
        "images/s, with purification": "{rate:.2g}",
    }
    return table(measured.rows("section_4_4", attack="bim"), columns)


def gradients() -> str:
    """Gradient norms behind the purifier."""
    rows = measured.rows("gradients_fashion_mnist")
    return report.markdown_table(*comparing.slope_table(rows))


def graded_control(dataset: str) -> str:
    """Graded purification beside compression alone, by grades of its own."""
    wanted = {"classifier": f"{dataset}/resnet", "defence": "purify_graded"}
    alone, both = (
        {
            (row["attack"], row["eps_attack"]): row
            for row in measured.rows(f"{name}_{dataset}", **wanted)
        }
        for name in ("graded_jpeg", "evaluate")
    )
    columns = {
        "attack": lambda pair: pair["both"]["attack"].upper().replace("NONE", "clean"),
        "eps": "{both[eps_attack]:g}",
        "purified and compressed": "{both[interval]}, n {both[n]}",
        "compressed alone": "{alone[interval]}, n {alone[n]}",
    }
    pairs = [
        {"both": both[key], "alone": row}
        for key, row in alone.items()
        if key[0] != tables.WORST
    ]
    # One text of each, or the rows are not of one table.
    (purified,), (compressed,) = (
        {row["grades"] for row in found.values()} for found in (both, alone)
    )
    lines = f"Grades: eps {purified}; without purification eps {compressed}."
    return f"{lines}\n\n{table(pairs, columns)}"


def mirrored(dataset: str) -> str:
    """Rows with and without a mirror, on validation images, worst of the attacks."""
    sets: dict[str, dict[float, list[dict]]] = {}
    for row in measured.rows(f"mirror_{dataset}"):
        if row["attack"] != WORST:
            each = sets.setdefault(told("{pipeline}", row), {})
            each.setdefault(row["eps_attack"], []).append(row)
    sizes = sorted({eps for each in sets.values() for eps in each})
    lines = [
        [text]
        + [
            measured.interval(min(each[eps], key=lambda row: row["accuracy"]))
            for eps in sizes
        ]
        for text, each in sets.items()
    ]
    header = ["row", *(f"eps {eps:g}" if eps else "clean" for eps in sizes)]
    return report.markdown_table(header, lines)


def drift(dataset: str) -> str:
    """What density models know of clean levels, by context."""
    rows = measured.rows(f"drift_{dataset}")
    return report.markdown_table(*drifting.drift_table(rows))


def detection(dataset: str, eps: float) -> str:
    """p-values of attacked images before and after purification."""
    rows = measured.rows(f"detection_{dataset}")
    return report.markdown_table(*summaries.detection_table(rows, eps))


def rejection(dataset: str, eps: float) -> str:
    """What detectors with a threshold reject, and what gets past them."""
    rows = measured.rows(f"detection_{dataset}")
    return report.markdown_table(*summaries.rejection_table(rows, eps))


def appendix_a() -> str:
    """ResNet': a random label for whatever is unlikely."""
    rows = measured.rows("detection_cifar10", defence="none")
    names = {"none": "clean", "rand": "RAND, eps 8"}
    columns = {
        "": lambda row: names[row["attack"]],
        "rejected": "{rejected[0.0175]:.1%}",
        "ResNet": "{accuracy:.1%}, n {n}",
        "ResNet'": "{random_label_accuracy[0.0175]:.1%}",
        "paper": lambda row: f"{published.RANDOM_LABEL[row['attack']]} %",
    }
    return table([row for row in rows if row["attack"] in names], columns)


def purifiers(dataset: str) -> str:
    """L-BFGS-B beside greedy decoding."""
    names = {
        "clean": "clean",
        "perturbed": "FGSM, eps 8",
        "purified": "PixelDefend",
        "lbfgs_b": "L-BFGS-B",
    }

    def share(field: str) -> Callable[[dict], str]:
        return lambda row: "" if row[field] is None else f"{100 * row[field]:.1f} %"

    columns = {
        "": lambda row: names[row["stage"]],
        "bits/dim (mean, 95 %)": "{bits}",
        "images": "{n}",
        "less likely than the FGSM image": share("less_likely_than_attacked"),
        "likelier than PixelDefend's": share("likelier_than_purified"),
    }
    return table(measured.rows(f"purifiers_{dataset}"), columns)
