"""Fills the pages with the numbers under `results/` and on the cards.

  python -m reproduction.pages            # writes
  python -m reproduction.pages --check    # compares, and says what differs

A page has places `<!-- begin: NAME -->` ... `<!-- end -->`; what stands between is made
here and nowhere else, so that no number is ever copied by hand.
"""

import pathlib
import re
from collections.abc import Callable
from functools import partial

from absl import app, flags

from reproduction import claims as leading
from reproduction import paper_tables as paper
from reproduction import released_tables as released
from reproduction import thesis_tables as thesis

ROOT = pathlib.Path(__file__).parent.parent
_RESULTS = (
    "index",
    "pixeldefend",
    "white_box",
    "puvae",
    "autoattack",
    "models",
    "speed",
)
PAGES = (
    "README.md",
    "docs/attacks.md",
    "docs/autoencoders.md",
    "docs/detection.md",
    "docs/evaluation.md",
    "docs/models.md",
    "docs/purifying.md",
    "docs/reproduce.md",
    *(f"docs/results/{name}.md" for name in _RESULTS),
)
_CHECK = flags.DEFINE_bool("check", False, "compare instead of writing")
_PLACE = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

PLACES: dict[str, Callable[[], str]] = {
    "autoencoders": released.autoencoders,
    "density_models": released.density_models,
    "classifiers": released.classifiers,
    "classifiers_whole": released.classifiers_whole,
    "speed": released.speed,
    "autoattack": released.autoattack,
    "frameworks": released.frameworks,
    "attacks_beside_foolbox": released.attacks_beside_foolbox,
    "purifier_speed": released.purifier_speed,
    "sizes_fashion_mnist": partial(released.networks, "sizes_fashion_mnist"),
    "conditionals_cifar10": partial(released.networks, "conditionals_cifar10"),
    "reach": released.reach,
    "hours": released.hours,
    "false_positives": thesis.false_positives,
    "evading": thesis.evading,
    "p_values_fashion_mnist": partial(thesis.p_values_in_front, "fashion_mnist"),
    "main_job_cifar10": partial(paper.main_job, "purify_cifar10"),
    "main_job_fashion_mnist": partial(paper.main_job, "purify_fashion_mnist"),
    "main_job_bim25": partial(paper.main_job, "purify_fashion_mnist_bim25"),
    "main_job_summary": leading.main_job_summary,
    "headline": leading.headline,
    "filters_cifar10": partial(paper.filters, "cifar10"),
    "graded_control_cifar10": partial(paper.graded_control, "cifar10"),
    "mirror_cifar10": partial(paper.mirrored, "cifar10"),
    "arms_cifar10": released.arms,
    "drift_cifar10": partial(paper.drift, "cifar10"),
    "section_4_4": paper.section_4_4,
    "gradients": paper.gradients,
    "appendix_a": paper.appendix_a,
    "detection_fashion_mnist_25": partial(paper.detection, "fashion_mnist", 25),
    "rejection_fashion_mnist_25": partial(paper.rejection, "fashion_mnist", 25),
}
for _dataset in ("mnist", "fashion_mnist"):
    PLACES |= {
        f"sweep_{_dataset}": partial(thesis.sweep, _dataset, thesis.OWN),
        f"sweep_others_{_dataset}": partial(thesis.sweep, _dataset, thesis.OTHERS),
        f"sweep_claims_{_dataset}": partial(thesis.sweep_claims, _dataset),
    }
for _dataset, _table, _after in (
    ("fashion_mnist", "table_1", ""),
    ("cifar10", "table_2", "_cifar10"),
):
    PLACES |= {
        _table: partial(paper.paper_table, _dataset),
        f"{_table}_made": partial(paper.paper_table_made, _dataset),
        f"claims{_after}": partial(leading.paper_claims, _dataset),
        f"departures{_after}": partial(paper.paper_departures, _dataset),
        f"threshold{_after}": partial(paper.threshold, _dataset),
        f"white_box{_after}": partial(leading.white_box, _dataset),
        f"detection_{_dataset}": partial(paper.detection, _dataset, 8),
        f"rejection_{_dataset}": partial(paper.rejection, _dataset, 8),
        f"purifiers_{_dataset}": partial(paper.purifiers, _dataset),
    }


def filled(text: str) -> str:
    """A page with every place filled anew.

    Raises:
      ValueError: a place that nothing here fills.
    """

    def fill(match: re.Match) -> str:
        begin, name, end = match.groups()
        if name not in PLACES:
            raise ValueError(f"nothing fills the place {name!r}")
        return f"{begin}\n{PLACES[name]()}\n\n{end}"

    return _PLACE.sub(fill, text)


def main(_: list[str]) -> None:
    """Fills the pages, or compares them."""
    stale = []
    for name in PAGES:
        page = ROOT / name
        old = page.read_text()
        new = filled(old)
        if new != old:
            stale.append(name)
            if not _CHECK.value:
                page.write_text(new)
    if _CHECK.value and stale:
        raise SystemExit(f"{', '.join(stale)}: run python -m reproduction.pages")
    print("written:" if stale else "up to date", *stale)


if __name__ == "__main__":
    app.run(main)
