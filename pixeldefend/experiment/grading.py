"""Grades of `purify_graded`, searched: what candidates make of sets of images, and
which of them is best from which bits/dim on.

A candidate is (eps, quality of JPEG afterwards, 0 for none).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import attacks
from pixeldefend.defences import base, graded
from pixeldefend.experiment import measure
from pixeldefend.experiment.grid import CLEAN, Adversary, Pipeline
from pixeldefend.experiment.rows import accuracy
from pixeldefend.experiment.tools import Tools, compute
from pixeldefend.experiment.workbench import Workbench, slug
from pixeldefend.models import classifiers

_QUANTILES = np.linspace(0, 1, 21)  # of the bits/dim of a set: starts of grades to try


class Measured(NamedTuple):
    """A set of images, and for which of them the classifier is right.

    Attributes:
      row: the classifier alone.
      adversary: the set.
      bits: of the images as they come, `[N]` bits/dim.
      bare: without a defence, `[N]` bool.
      plain: purified within `purify.eps`, likewise.
      candidates: after each candidate, `[K, N]`.
    """

    row: Pipeline
    adversary: Adversary
    bits: np.ndarray
    bare: np.ndarray
    plain: np.ndarray
    candidates: np.ndarray

    def __str__(self) -> str:
        on = f", on {self.row.classifier}" * (self.adversary.attack == CLEAN)
        return f"{self.adversary}{on}"


def gentlest_first(
    eps: Sequence[int], qualities: Sequence[int]
) -> list[tuple[int, int]]:
    """All candidates: the smaller eps is the gentler, then no JPEG, then a fine one."""
    return sorted(
        ((one, quality) for one in eps for quality in qualities),
        key=lambda candidate: (candidate[0], -(candidate[1] or 101)),
    )


def measured(
    bench: Workbench,
    row: Pipeline,
    adversary: Adversary,
    candidates: Sequence[tuple[int, int]],
) -> Measured:
    """What candidates, plain purification and nothing make of a set."""
    qualities = sorted({0, *(quality for _, quality in candidates)})
    plain = bench.tools.settings["purify"]["eps"]
    right: dict[tuple[int, int], np.ndarray] = {}
    for eps in sorted({plain, *(eps for eps, _ in candidates)}):
        purified = _purified(bench, adversary, eps)
        bits = bench.bits_per_dim(purified["given_log_probs"])
        classes = _classes(bench, row, adversary, eps, purified["images"], qualities)
        labels = bench.labels[: len(classes), None]
        for quality, correct in zip(qualities, (classes == labels).T, strict=True):
            right[eps, quality] = correct
    bare = bench.correct(row, adversary)
    of_each = np.stack([right[candidate] for candidate in candidates])
    return Measured(row, adversary, bits, bare, right[plain, 0], of_each)


def _purified(bench: Workbench, adversary: Adversary, eps: int) -> dict:
    """What `purify` of an eps of its own computes of a set, with the window of that."""
    images = bench.attacked(adversary)["images"]
    purify, params = with_purify(bench.tools, eps=eps).defence("purify")
    return bench.once(
        "purified",
        f"{slug(adversary)} by purify eps{eps}",
        f"purify within {eps}: {adversary}",
        compute,
        (purify, (), bench.tools.seed),
        params,
        images,
        np.arange(len(images), dtype=np.uint32),
    )


def _classes(
    bench: Workbench,
    row: Pipeline,
    adversary: Adversary,
    eps: int,
    images: np.ndarray,
    qualities: Sequence[int],
) -> np.ndarray:
    """What a classifier takes purified images for after each JPEG, `[N, Q]`."""
    model, variables, _ = bench.tools.classifiers[row.classifier]
    return bench.once(
        "predictions",
        f"{row} {slug(adversary)} by purify eps{eps}, compressed",
        f"{row}: {adversary}, purified within {eps}",
        compressed_classes,
        (model,),
        {"classifier": variables, "qualities": np.array(qualities, np.int32)},
        images,
    )["classes"]


def compressed_classes(
    model: classifiers.Classifier, variables: dict, images: jax.Array
) -> dict:
    """What a classifier takes images for after JPEG, `classes` `[B, Q]`.

    Args:
      model: the classifier.
      variables: `classifier`, and `qualities` `[Q]`, 0 for no compression.
      images: `[B, H, W, C]` uint8.
    """
    logits_fn = classifiers.logits_fn(model)

    def after(quality: jax.Array) -> jax.Array:
        each = jnp.broadcast_to(quality, images.shape[:1])
        found = graded.compressed(images.astype(jnp.float32), quality=each)
        return attacks.predicted(logits_fn, variables["classifier"], base.whole(found))

    return {"classes": jax.lax.map(after, variables["qualities"]).T}


def with_purify(tools: Tools, **settings: Any) -> Tools:
    """Tools with other settings of `purify`."""
    purify = tools.settings["purify"] | settings
    return dataclasses.replace(tools, settings=tools.settings | {"purify": purify})


def shares(sets: Sequence[Measured], clean_share: float) -> list[Fraction]:
    """How much the accuracy of each set counts, in exact numbers.

    Clean sets (one for each classifier) have `clean_share`, to a thousandth, and the
    others the rest, all clean ones equally and all others equally.
    """
    clean = [one.adversary.attack == CLEAN for one in sets]
    share = Fraction(clean_share).limit_denominator(1000)
    return [
        share / sum(clean) if of_clean else (1 - share) / (len(sets) - sum(clean))
        for of_clean in clean
    ]


def chosen(
    sets: Sequence[Measured], clean_share: float, most: int
) -> list[tuple[float, int]]:
    """The best grades for some sets, see `search`; they begin at hundredths of bits/dim
    near quantiles of each set, those of every twentieth of its images."""
    worth = [
        share / len(one.bits)
        for share, one in zip(shares(sets, clean_share), sets, strict=True)
    ]
    whole = math.lcm(*(one.denominator for one in worth))
    starts = np.concatenate([np.quantile(one.bits, _QUANTILES) for one in sets])
    starts = np.unique(np.round(starts.astype(float), 2))
    return search(
        np.concatenate([one.bits for one in sets]),
        np.concatenate([one.candidates for one in sets], 1),
        np.repeat([int(one * whole) for one in worth], [len(one.bits) for one in sets]),
        starts[(starts > 0) & np.isfinite(starts)],
        most=most,
    )


def search(
    bits: np.ndarray,
    right: np.ndarray,
    weights: np.ndarray,
    starts: np.ndarray,
    *,
    most: int,
) -> list[tuple[float, int]]:
    """The grades after which images of the highest total weight are classified right.

    Exact: of all ways to begin grades at some of `starts`, and of all candidates for
    each (dynamic programming; a grade's images are those between two starts). Of
    equally good ones it takes those with fewest grades, and of these the gentlest: the
    places of the images' candidates have the least sum.

    Args:
      bits: of the images, `[N]` bits/dim.
      right: whether they are classified right after each candidate, `[K, N]` bool; the
        gentlest candidate first.
      weights: of the images, `[N]`, whole numbers: equal is equal.
      starts: where a grade may begin besides at 0, `[M]` bits/dim, ascending.
      most: grades at most, from 1.

    Returns:
      For each grade the bits/dim from which on it holds, and its candidate's place.
    """
    cell = _passed(bits, starts)
    cells = len(starts) + 1
    gained = np.zeros((cells + 1, len(right)), np.int64)  # by images of cells before
    np.add.at(gained, cell + 1, np.where(right, weights, 0).T)
    gained = gained.cumsum(0)
    counts = np.bincount(cell + 1, minlength=cells + 1).cumsum()
    # Of one grade from cell i to before cell j: its score, and its candidate.
    scores = np.zeros((cells, cells + 1), np.int64)
    best = np.zeros((cells, cells + 1), np.int64)
    for i in range(cells):
        of_each = gained[i + 1 :] - gained[i]
        best[i, i + 1 :] = of_each.argmax(1)  # the first, which is the gentlest
        scores[i, i + 1 :] = of_each.max(1)
    rough = best * (counts[None] - counts[:cells, None])
    gains, roughness = scores.tolist(), rough.tolist()
    # By the cell before which they end: score, minus roughness, where grades begin.
    layer: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    whole = []
    for _ in range(min(most, cells)):
        layer = {
            j: max(
                (score + gains[i][j], gentle - roughness[i][j], (*begun, i))
                for i, (score, gentle, begun) in layer.items()
                if i < j
            )
            for j in range(min(layer) + 1, cells + 1)
        }
        whole.append(layer[cells])
    _, _, begun = max(whole, key=lambda found: found[0])
    ends = (*begun[1:], cells)
    return [
        (float(starts[i - 1]) if i else 0.0, int(best[i, j]))
        for i, j in zip(begun, ends, strict=True)
    ]


def _passed(bits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How many starts each image is not below, as `graded.graded_eps` compares them."""
    levels = np.asarray(starts, np.float32)
    return np.searchsorted(levels, np.asarray(bits, np.float32), side="right")


def graded_right(one: Measured, grades: Sequence[tuple[float, int]]) -> np.ndarray:
    """Which images of a set are classified right behind grades, `[N]` bool."""
    grade = _passed(one.bits, np.array([start for start, _ in grades[1:]]))
    candidate = np.array([candidate for _, candidate in grades])[grade]
    return one.candidates[candidate, np.arange(len(candidate))]


def weighted(
    right: Sequence[np.ndarray], sets: Sequence[Measured], clean_share: float
) -> float:
    """The weighted mean of the accuracies of all sets, by which grades are chosen."""
    whole = sum(
        share * Fraction(int(one.sum()), len(one))
        for share, one in zip(shares(sets, clean_share), right, strict=True)
    )
    return float(whole)


def in_config(
    grades: Sequence[tuple[float, int]], candidates: Sequence[tuple[int, int]]
) -> tuple[tuple, ...]:
    """Grades as `purify.grades` has them."""
    return tuple(
        (start, candidates[place][0], *filter(None, candidates[place][1:]))
        for start, place in grades
    )


def table(
    sets: Sequence[Measured],
    outcomes: dict[str, list[np.ndarray]],
    clean_share: float,
) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table: accuracy of each set, and the weighted mean.

    Args:
      sets: a line each.
      outcomes: by the title of a column, which images of each set are right `[N]`.
      clean_share: as for `shares`.
    """
    lines = [
        [str(one), str(len(one.bits)), *(f"{right.mean():.1%}" for right in of_each)]
        for one, *of_each in zip(sets, *outcomes.values(), strict=True)
    ]
    means = [weighted(right, sets, clean_share) for right in outcomes.values()]
    lines.append([f"mean, clean {clean_share:.0%}", "", *(f"{m:.1%}" for m in means)])
    return ["accuracy", "n", *outcomes], lines


def rows(
    bench: Workbench, tools: Tools, one: Measured, right: np.ndarray, mark: str
) -> Iterator[dict]:
    """A set without a defence, purified, and purified by the chosen grades.

    Args:
      bench: that has the images.
      tools: with the chosen grades among their settings.
      one: the set.
      right: see `graded_right`.
      mark: of the run.
    """
    for its, name, correct in (
        (bench.tools, (), one.bare),
        (bench.tools, ("purify",), one.plain),
        (tools, ("purify_graded",), right),
    ):
        row = dataclasses.replace(one.row, defences=name)
        yield (
            measure.identity(its, row, one.adversary)
            | measure.images(bench.given, len(correct))
            | accuracy(correct)
            | measure.provenance(mark, 0.0)
        )
