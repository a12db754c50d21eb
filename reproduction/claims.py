"""What the pages lead with: the best rows, and what is left under who sees them."""

import dataclasses
from collections.abc import Callable

from pixeldefend.experiment import grid, report, tables
from pixeldefend.experiment.rows import WORST
from reproduction import measured, paper_tables
from reproduction.measured import table, told


def _least(found: tables.Table, text: str, eps: float) -> tables.Cell | None:
    """A row's cell under the strongest attack of all, those beyond the paper's too."""
    strongest = found.cell(text, tables.STRONGEST, eps)
    if strongest is None:
        return None
    beyond = set(found.columns()) - {grid.CLEAN, tables.STRONGEST, WORST}
    cells = [found.cell(text, name, eps) for name in sorted(beyond)]
    least = min(filter(None, cells), key=lambda cell: cell.ours)
    return dataclasses.replace(least, paper=strongest.paper)


def claims(
    found: tables.Table, seen: dict[tuple[str, float], str] | None = None
) -> list[list[str]]:
    """For each eps the best row without and with a purifier, strongest attack.

    Args:
      found: cells, grey-box where purified.
      seen: accuracies under an attacker who sees the purifier, by row and eps.

    Returns:
      Lines of eps, the best baseline, its accuracy, the best purified row, its, the one
      in `seen`, and what the paper has for its own best ones.
    """
    lines = []
    for eps in found.layout.eps:
        sides: dict[bool, list[tuple[grid.Pipeline, tables.Cell]]] = {}
        for text in found.layout.rows:
            cell = _least(found, text, eps)
            if cell is not None:
                row = grid.pipeline(text, eps)
                sides.setdefault(row.purifies, []).append((row, cell))
        if len(sides) < 2:
            continue
        line, theirs = [f"{eps:g}"], []
        for _, side in sorted(sides.items()):
            row, cell = max(side, key=lambda pair: pair[1].ours)
            line += [str(row).partition("/")[2], str(paper_tables.ours(cell))]
            papers = [cell.paper for _, cell in side if cell.paper is not None]
            theirs += [f"{max(papers):.0f}"] if papers else []
        line.append((seen or {}).get((str(row), eps), "not measured"))
        lines.append([*line, " → ".join(theirs) if len(theirs) == 2 else ""])
    return lines


def paper_claims(dataset: str) -> str:
    """The best baseline and the best purified row."""
    header = ["eps", "best baseline", "grey-box"]
    header += ["best PixelDefend", "grey-box", "white-box", "paper"]
    seen = {}
    for sides in _white_box_rows(dataset):
        looked = [sides[side] for side in ("every", "apgd") if side in sides]
        least = min(looked, key=lambda row: row["accuracy"])
        key = told("{pipeline}", least), least["eps_attack"]
        seen[key] = told("{interval}, n {n}", least).replace(" %", "")
    return report.markdown_table(header, claims(paper_tables.table_of(dataset), seen))


def _white_box_rows(dataset: str) -> list[dict]:
    """For each eps and defence: its worst row of the paper's attacks ("grey"), those of
    PGD ("pgd") and APGD ("apgd") that see everything, and the row of images that
    survive all of these but APGD ("every")."""
    found: dict[tuple, dict[str, dict]] = {}
    for row in measured.rows(f"white_box_{dataset}"):
        if row["threat"] is None:
            continue
        key = row["eps_attack"], row["classifier"], row["defence"]
        # On the bare classifier every attack is white-box: those of the paper, and PGD.
        sides = {"pgd": "pgd", "apgd": "apgd", tables.WORST: "every"}
        side = sides.get(row["attack"], "grey")
        known = found.setdefault(key, {}).setdefault(side, row)
        found[key][side] = min(known, row, key=lambda row: row["accuracy"])
    return [found[key] for key in sorted(found)]


def white_box(dataset: str) -> str:
    """Accuracies under an attacker who sees the purifier, beside those under others."""

    def of(side: str) -> Callable[[dict], str]:
        return lambda sides: (
            told("{interval}, n {n}", sides[side]) if side in sides else ""
        )

    columns = {
        "classifier": "`{pgd[classifier]}`",
        "defence": lambda sides: sides["pgd"]["defence"].replace("_", " "),
        "eps": "{pgd[eps_attack]:g}",
        "the paper's attacks (strongest)": lambda sides: told(
            f"{{interval}}, {sides['grey']['attack'].upper()}, n {{n}}", sides["grey"]
        ),
        "white-box PGD": of("pgd"),
        "all of these": "**{every[interval]}**, n {every[n]}",
        "white-box APGD": of("apgd"),
    }
    rows = _white_box_rows(dataset)
    if not any("apgd" in sides for sides in rows):
        del columns["white-box APGD"]
    return table(rows, columns)


def headline() -> str:
    """The first line of results: what is left under who does not look, and who does."""
    lines = []
    for words, dataset, defence in (
        ("Fashion-MNIST", "fashion_mnist", "purify"),
        ("CIFAR-10", "cifar10", "purify_graded+mirror"),
    ):
        wanted = {"classifier": f"{dataset}/resnet", "defence": defence}
        found = [
            sides
            for sides in _white_box_rows(dataset)
            if wanted.items() <= sides["pgd"].items()
        ]
        shares = ", ".join(
            told(
                "**{every[accuracy]:.1%}** at eps {every[eps_attack]:g} (grey-box: "
                "{grey[accuracy]:.1%})",
                sides,
            )
            for sides in found
        )
        lines.append(f"- {words}, {found[-1]['every']['n']} test images: {shares}.")
    return (
        "The ResNet behind PixelDefend, under an attacker who sees the purifier "
        "(white-box: the\npaper's attacks and PGD by BPDA, 100 steps, image by "
        "image):\n\n" + "\n".join(lines) + "\n\n"
        "Attacks through the purifier are stronger than any in the paper; nothing here "
        "claims\nrobustness."
    )


def main_job_summary() -> str:
    """How far purification gets on CIFAR-10, clean and under attack."""
    cells = paper_tables.table_of("cifar10")
    ours = "this defence"
    rows = {
        "bare": "cifar10/resnet",
        ours: "cifar10/resnet + purify_graded + mirror",
        "the paper's, eps 16": "cifar10/resnet + purify",
    }
    clean, lines = {}, []
    for words, text in rows.items():
        clean[words] = f"{cells.cell(text, grid.CLEAN, 2.0).ours:.1f}"
        attacked = [cells.cell(text, tables.STRONGEST, eps).ours for eps in (2.0, 8.0)]
        lines.append([words, clean[words], *(f"{share:.1f}" for share in attacked)])
    for words, defence in (("bare", "none"), (ours, "purify_graded+mirror")):
        seen = measured.rows(
            "white_box_cifar10",
            classifier="cifar10/resnet",
            defence=defence,
            attack=tables.WORST,
        )
        shares = {row["eps_attack"]: f"{100 * row['accuracy']:.1f}" for row in seen}
        line = [f"{words}, white-box", clean[words], shares[2.0], shares[8.0]]
        lines.append(line)
    count = cells.cell("cifar10/resnet", tables.STRONGEST, 8.0).n
    shown = report.markdown_table(["accuracy, %", "clean", "eps 2", "eps 8"], lines)
    return (
        "The higher an image's bits/dim, the larger its ball and the stronger the JPEG "
        "compression\nafterwards, which leaves the ball; the classifier sees the "
        "result mirrored. The ResNet\nunder the worst of the paper's five attacks "
        f"({count} images; grey-box where defended), or\nof these and PGD through the "
        f"defence (white-box, BPDA, {seen[0]['n']} images):\n\n{shown}"
    )
