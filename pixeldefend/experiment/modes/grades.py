"""The mode `calibrate` of purify_graded: what to do to an image, by its bits/dim."""

from pixeldefend.experiment import files, grading, parallel, report
from pixeldefend.experiment.modes import inputs, thresholds
from pixeldefend.experiment.rows import write_rows
from pixeldefend.experiment.workbench import Workbench
from pixeldefend.experiment.workdir import Workdir, command_line, user_errors

_MOST = 9  # grades; more would fit the images that they are chosen on


def choose(config: inputs.Config, workdir: Workdir) -> None:
    """Chooses the grades of purify_graded on validation images."""
    settings = config.calibrate
    with user_errors():
        _check(settings)
        layout, tools, given = thresholds.prepared(config, "purify_graded")
    folder = workdir.open()
    thresholds.tell_test_images(given)
    candidates = grading.gentlest_first(settings.eps, settings.qualities)
    bench = Workbench(folder, given, tools)
    cells = [cell for cell in layout.cells() if not cell[0].defences]
    for _, adversary in cells:  # before the first image is purified
        bench.attacked(adversary)
    sets = [grading.measured(bench, *cell, candidates) for cell in cells]
    share = settings.clean_share
    choice = grading.chosen(sets, share, settings.grades)
    alone = grading.chosen(sets, share, 1)
    grades = grading.in_config(choice, candidates)
    eps = max(eps for _, eps, *_ in grades)
    right = [grading.graded_right(one, choice) for one in sets]
    found = {
        "grades": grades,
        "rule": "the highest mean accuracy; of equals the fewest grades, the gentlest",
        "clean_share": share,
        "accuracy": round(grading.weighted(right, sets, share), 4),
        "classifier": config.classifier.weights,
        "attacks": list(config.evaluate.attacks),
        "eps_attack": list(config.evaluate.eps_attack),
        "input": given.source,
        "n": len(given.images),
        "device": parallel.devices(),
        "command": command_line(),
        "candidates": _candidates(sets, candidates, share),
    }
    files.write_json(folder / "grades.json", found)
    its = grading.with_purify(tools, grades=grades, eps=eps)
    lines = [
        row
        for one, correct in zip(sets, right, strict=True)
        for row in grading.rows(bench, its, one, correct, workdir.hash)
    ]
    write_rows(folder / "rows.jsonl", lines)
    bench.tidy()
    outcomes = {
        "no defence": [one.bare for one in sets],
        f"eps {config.purify.eps}": [one.plain for one in sets],
        f"best alone: {_words(candidates[alone[0][1]])}": [
            grading.graded_right(one, alone) for one in sets
        ],
        "graded": right,
    }
    print(report.table(*grading.table(sets, outcomes, share)))
    print(
        f"chosen on these {found['n']} images ({given.source}), so expect less on "
        f"others, in front of {found['classifier']} (grey-box attacks):\n"
        f'--config.purify.eps={eps} --config.purify.grades="{grades}"\n'
        f"results in {folder}"
    )


def _check(settings: inputs.Config) -> None:
    """Raises ValueError for what the section cannot mean."""
    for field, least, highest in (("eps", 0, 255), ("qualities", 0, 100)):
        values = settings[field]
        whole = all(type(one) is int and least <= one <= highest for one in values)
        if not values or not whole or len(set(values)) < len(values):
            raise ValueError(
                f"calibrate.{field} must be whole numbers from {least} to {highest}, "
                f"at least one and none twice: {values}"
            )
    if not 1 <= settings.grades <= _MOST:
        raise ValueError(
            f"calibrate.grades must be from 1 to {_MOST}: {settings.grades}"
        )
    if not 0 <= settings.clean_share <= 1:
        raise ValueError(
            f"calibrate.clean_share must be from 0 to 1: {settings.clean_share}"
        )
    if settings.keep:
        raise ValueError(
            "calibrate.keep: grades go into a config (purify.grades), not on a card"
        )


def _words(candidate: tuple[int, int]) -> str:
    eps, quality = candidate
    return f"eps {eps} with JPEG {quality}" if quality else f"eps {eps}"


def _candidates(
    sets: list[grading.Measured], candidates: list[tuple[int, int]], share: float
) -> list[dict]:
    """What each candidate does if every image gets it, the gentlest first."""
    found = []
    for place, (eps, quality) in enumerate(candidates):
        right = [one.candidates[place] for one in sets]
        found.append(
            {
                "eps": eps,
                "quality": quality,
                "accuracy": round(grading.weighted(right, sets, share), 4),
                "of_each": {
                    str(one): round(float(correct.mean()), 4)
                    for one, correct in zip(sets, right, strict=True)
                },
            }
        )
    return found
