"""The judge's protocol of attacks on a defence, and the verdict that they leave.

The protocol follows what has broken defences before: attacks through the defence by
every gradient that it has, which keep what fools the defence itself (Athalye et al.
2018; Tramer et al. 2020), attacks by queries alone, attacks transferred from the bare
classifier, an unbounded search, which must always succeed, and against detectors
attacks that evade them too. The bare classifier stands beside it, under AutoAttack: a
defence that keeps no more than that has added nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pixeldefend import pixels
from pixeldefend.defences import base, reject
from pixeldefend.experiment import report
from pixeldefend.experiment.rows import accuracy

CLEAN, BARE, TRANSFER = "clean", "bare", "transfer"
THROUGH, JOINT, UNBOUNDED = "through", "joint", "unbounded"
# Of these the verdict is the worst, image by image.
_JUDGED = (TRANSFER, THROUGH, JOINT)
SEES = {
    CLEAN: "",
    BARE: "classifier, undefended",
    TRANSFER: "classifier, then defended",
    THROUGH: "defence and classifier",
    JOINT: "detectors too",
    UNBOUNDED: "defence and classifier",
}
BUDGETS = ("whole", "glance")
NO_BOUND = float(pixels.LEVELS - 1)  # levels; any image is within


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the protocol.

    Attributes:
      kind: what the attack sees: `CLEAN` (no attack), `BARE` (the classifier, and
        nothing stands in front of it), `TRANSFER` (the classifier; the images then pass
        the defence), `THROUGH` (all of it), `JOINT` (detectors too), or `UNBOUNDED` (as
        `THROUGH`, but eps is the whole range).
      attack: of `attacks.ATTACKS`; "" for clean images and for `JOINT`, which is
        `attacks.evade`.
      preset: of its arguments.
      gradient: how it looks through the defence, of `base.GRADIENTS`, or
        `base.OUTPUTS`; "" for not at all.
    """

    kind: str
    attack: str = ""
    preset: str = ""
    gradient: str = ""

    @property
    def name(self) -> str:
        """Of the attack, for a table; what its preset is goes without saying."""
        if self.kind == JOINT:
            return "evade"
        return self.attack or "none"

    def eps(self, eps: float) -> float:
        """Of this line, where the protocol's is `eps`."""
        return {CLEAN: 0.0, UNBOUNDED: NO_BOUND}.get(self.kind, eps)


def protocol(
    defences: Sequence[base.Defence | type[base.Defence]],
    budget: str = "whole",
    gradients: Sequence[str] = (),
) -> list[Line]:
    """The lines for a classifier behind defences, none included.

    Args:
      defences: in the order in which an image passes them.
      budget: of `BUDGETS`: "whole", or for a first look "glance", whose attacks on
        what defends take a tenth of the steps.
      gradients: of `base.GRADIENTS`, the ones by which the attacks look through the
        defences; none given: all.

    Raises:
      ValueError: a detector stands behind a defence: it would have to judge what the
        attacker does not send; or gradients that the defences do not have.
    """
    detects = [defence.detects for defence in defences]
    if detects != sorted(detects, reverse=True):
        raise ValueError("the judge takes detectors only in front of other defences")
    behind = [defence for defence in defences if not defence.detects]
    shared = _gradients(defences)
    if strange := [g for g in gradients if g not in shared]:
        known = ", ".join(shared) or "none"
        raise ValueError(f"this defence has no gradients {strange}; it has: {known}")
    gradients = [g for g in shared if g in gradients or not gradients] or [""]
    lines = [Line(CLEAN), Line(BARE, "auto_attack", "standard")]
    if not defences:
        return lines
    lines.append(Line(TRANSFER, "auto_attack", "standard"))
    random = any(defence.random for defence in behind)
    if behind:
        for gradient in gradients:
            lines += _through(gradient, random, budget)
        queries = {"whole": "standard", "glance": "glance"}[budget]
        lines.append(Line(THROUGH, "square", queries, base.OUTPUTS))
    if any(detects):
        lines += [Line(JOINT, gradient=gradient) for gradient in gradients]
    if behind:
        first = _through(gradients[0], random, budget)[0]
        lines.append(dataclasses.replace(first, kind=UNBOUNDED))
    return lines


def _gradients(
    defences: Sequence[base.Defence | type[base.Defence]],
) -> list[str]:
    """Those by which one can look through all of the defences."""
    behind = [defence for defence in defences if not defence.detects]
    if not behind:
        return []
    if all(defence.always_seen for defence in behind):
        return ["straight_through"]  # they are seen alike by every gradient
    return [g for g in base.GRADIENTS if all(g in d.gradients for d in behind)]


def left_out(
    defences: Sequence[base.Defence | type[base.Defence]], lines: Sequence[Line]
) -> tuple[str, ...]:
    """The gradients that defences have and no line of a protocol uses."""
    used = {line.gradient for line in lines}
    return tuple(g for g in _gradients(defences) if g not in used)


def standing(
    line: Line, defences: Sequence[base.Defence | type[base.Defence]]
) -> list[bool]:
    """Which of the defences the images of a line have to pass.

    None, where the classifier is judged alone; and no detectors where there is no
    bound: they would reject what has come so far, and hide whether it fools.
    """
    if line.kind == BARE:
        return [False] * len(defences)
    return [line.kind != UNBOUNDED or not defence.detects for defence in defences]


def _through(gradient: str, random: bool, budget: str) -> list[Line]:
    """What looks through a defence by one gradient."""
    preset = {"whole": "judge", "glance": "glance"}[budget]
    pgd = Line(THROUGH, "pgd", preset, gradient)
    if not random:  # one program for both losses of APGD
        return [Line(THROUGH, "apgd", preset, gradient), pgd]
    # Of random defences APGD takes the expectation itself, over fresh draws.
    if gradient == "expectation":
        return [pgd]
    return [Line(THROUGH, "auto_attack", "rand", gradient)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a line.

    Attributes:
      line: of the protocol.
      correct: `[N]` bool: the label was found or, attacked, the image was rejected.
      seconds: that it took, compilation apart.
      doubts: of AutoAttack, see `attacks.AutoInfo`: of how many images, by name.
      draws: of a random defence, `[D, N]` bool: `correct` of each of several
        evaluations, whose majority `correct` then tells.
    """

    line: Line
    correct: np.ndarray
    seconds: float
    doubts: dict[str, int] = dataclasses.field(default_factory=dict)
    draws: np.ndarray | None = None

    def told(self, number: int, count: int) -> str:
        """The outcome in a line of text; it is that of line `number` of `count`."""
        seen = ", ".join(filter(None, (SEES[self.line.kind], self.line.gradient)))
        share, _ = counted(self.correct)
        return (
            f"line {number} of {count}: {self.line.name} ({seen or 'clean'}): "
            f"{share} %, {self.seconds:.0f} s"
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge found.

    Attributes:
      outcomes: of each line.
      eps: levels, of the attacks.
      classifier: its name.
      defence: the defences' names, joined by " + "; "" for none.
      loops: whether the defended classifier has a loop in its forward pass.
      rejects: the share of clean images that detectors are allowed to reject; None
        where there are no detectors.
      left_out: gradients by which the attacks were not to look through the defence.
    """

    outcomes: tuple[Outcome, ...]
    eps: float
    classifier: str = "classifier"
    defence: str = ""
    loops: bool = False
    rejects: float | None = None
    left_out: tuple[str, ...] = ()

    def of(self, *kinds: str) -> list[Outcome]:
        """The outcomes of some kinds of lines."""
        return [one for one in self.outcomes if one.line.kind in kinds]

    @property
    def correct(self) -> np.ndarray:
        """`[N]` bool: images that survive every attack on what was judged."""
        judged = self.of(*_JUDGED) or self.of(BARE)
        return np.all([one.correct for one in judged], 0)

    @property
    def accuracy(self) -> float:
        """The share of these."""
        return float(self.correct.mean())

    def table(self, form: Callable[..., str] = report.table) -> str:
        """A line for each attack and one for the worst of them, image by image.

        Args:
          form: `report.table`, `report.markdown_table` or `report.latex_table`.
        """
        header = ["attack", "sees", "gradient", "eps", "accuracy, %", "n", "seconds"]
        lines = []
        for one in self.outcomes:
            line = one.line
            bound = "none" if line.kind == UNBOUNDED else f"{line.eps(self.eps):g}"
            cells = [line.name, SEES[line.kind], line.gradient, bound]
            lines.append([*cells, *counted(one.correct), f"{one.seconds:.0f}"])
        seconds = f"{sum(one.seconds for one in self.outcomes):.0f}"
        worst = ["worst", "image by image", "", f"{self.eps:g}"]
        lines.append([*worst, *counted(self.correct), seconds])
        return form(header, lines)

    def notes(self) -> list[str]:
        """What is to be known of these numbers before they are believed."""
        found = []
        for one in self.of(UNBOUNDED):
            if left := one.correct.mean():
                found.append(
                    f"{one.line.name} without a bound leaves {left:.1%} accuracy, "
                    "where it must leave none: the attacks get no useful gradient "
                    "through the defence, so trust no accuracy above"
                )
        if any(one.line.preset == "glance" for one in self.outcomes):
            found.append(
                "this was a glance, at a tenth of the steps: the whole protocol is "
                "stronger"
            )
        if self.left_out:
            names = " and ".join(_hyphened(self.left_out))
            found.append(
                f"no attack went through the defence by {names}: the whole protocol, "
                "which does so, is stronger"
            )
        found += self._beyond_gradients() + self._added()
        for one in self.of(BARE):
            for name, count in one.doubts.items():
                found.append(f"{_DOUBTS[name]} ({count} of {len(one.correct)} images)")
        if self.loops:
            found.append(
                "the defence has a loop in its forward pass, which may make gradients "
                "misleading: an attack adapted to it may be stronger"
            )
        if draws := [one.draws for one in self.outcomes if one.draws is not None]:
            last, spread = draws[-1], np.mean([np.any(of != of[0]) for of in draws])
            found.append(
                f"the defence is randomised: each image is decided by a majority of "
                f"{len(last)} evaluations, which differ in {spread:.0%} of the lines"
            )
        return found + self._implied()

    def _beyond_gradients(self) -> list[str]:
        """Where queries fool what gradients do not, these are no guide."""
        through = self.of(THROUGH, JOINT)
        square = [o for o in through if o.line.gradient == base.OUTPUTS]
        others = [o for o in through if o.line.gradient != base.OUTPUTS]
        if not square or not others:
            return []
        left = np.all([one.correct for one in others], 0)
        if not (more := int(np.sum(left & ~square[0].correct))):
            return []
        return [
            f"queries alone fool {more} images that no gradient does: a sign that the "
            "defence masks its gradients"
        ]

    def _added(self) -> list[str]:
        """What the defence adds to the classifier."""
        if not self.of(*_JUDGED):
            return []
        (bare,) = self.of(BARE)
        alone, with_it = bare.correct.mean(), self.accuracy
        if with_it > alone:
            return []
        return [
            f"the classifier alone keeps {alone:.1%} under AutoAttack, and "
            f"{with_it:.1%} behind the defence: the defence adds nothing against "
            "an attacker who knows it"
        ]

    def _implied(self) -> list[str]:
        """What a detector that robust would amount to."""
        if not self.of(JOINT):
            return []
        return [
            f"rejecting at most {self.rejects:.1%} of clean images at eps {self.eps:g} "
            f"with {self.accuracy:.1%} right or rejected implies a classifier of that "
            f"robust accuracy at eps {self.eps / 2:g}, if an inefficient one (Tramer "
            "2021): compare it with the best known at that eps"
        ]

    def paragraph(self) -> str:
        """The threat model and the verdict in words, ready to paste."""
        count = len(self.correct)
        what = " behind ".join(filter(None, (self.classifier, self.defence)))
        numbers = accuracy(self.correct)
        names = dict.fromkeys(one.line.name for one in self.of(*_JUDGED))
        looks = [o.line.gradient for o in self.of(THROUGH, JOINT)]
        ways = ", ".join(_hyphened(dict.fromkeys(filter(None, looks))))
        (clean,) = self.of(CLEAN)
        (bare,) = self.of(BARE)
        text = (
            f"Threat model: L-infinity, eps {self.eps:g} levels ({self.eps:g}/255), "
            "attacked images in whole levels, untargeted; the attacker knows the "
            "weights of the classifier"
        )
        if not self.defence:
            text += f". AutoAttack (standard) on {what}, {count} images: "
        else:
            text += (
                f" and of the defence, and attacks through it by {ways or 'nothing'}. "
                f"{what}, worst case of {', '.join(names)} for each image, "
                f"{count} images: "
            )
        ends = f"{100 * numbers['low']:.1f} to {100 * numbers['high']:.1f}"
        text += f"{self.accuracy:.1%} (95 % interval {ends}), clean "
        text += f"{clean.correct.mean():.1%}"
        if self.defence:
            text += f"; the classifier alone under AutoAttack {bare.correct.mean():.1%}"
        return text + "."


def _hyphened(names: Iterable[str]) -> list[str]:
    return [name.replace("_", "-") for name in names]


_DOUBTS = {
    "square": "Square Attack fools what AutoAttack's gradient attacks do not",
    "flat": "AutoAttack met gradients of zero",
    "random": "the classifier is randomised, which standard AutoAttack is not made for",
    "loops": "the classifier has a loop in its forward pass",
}


def counted(correct: np.ndarray) -> list[str]:
    """Accuracy with its interval, and of how many."""
    told = accuracy(correct)
    share, low, high = (f"{100 * told[k]:.1f}" for k in ("accuracy", "low", "high"))
    return [f"{share} ({low} to {high})", str(told["n"])]


def outcome(
    line: Line,
    found: list[np.ndarray],
    labels: np.ndarray,
    rejection: int,
    seconds: float,
    doubts: dict[str, int] | None = None,
) -> Outcome:
    """The outcome of a line whose images were evaluated once, or several times.

    Args:
      line: of the protocol.
      found: of each evaluation the classes `[N]`, or `rejection` where detectors
        rejected an image.
      labels: the true ones, `[N]`.
      rejection: a number that is no class.
      seconds: for `Outcome`.
      doubts: likewise.
    """

    def right(one: np.ndarray) -> np.ndarray:
        attacked = line.kind != CLEAN
        return reject.correct(one, labels, label=rejection, attacked=attacked)

    each = np.stack(found)
    votes = np.stack([np.sum(each == label, 0) for label in range(rejection + 1)])
    draws = np.stack([right(one) for one in found]) if len(found) > 1 else None
    return Outcome(line, right(votes.argmax(0)), seconds, doubts or {}, draws)
