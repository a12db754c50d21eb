"""The judge for any classifier and any defence of somebody's own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import attacks, keys
from pixeldefend.defences import base, reject
from pixeldefend.experiment import adversaries, parallel, report, verdict
from pixeldefend.experiment.adversaries import Target
from pixeldefend.experiment.verdict import (
    BARE,
    BUDGETS,
    CLEAN,
    JOINT,
    TRANSFER,
    Line,
    Outcome,
    Verdict,
    protocol,
)


def judge(
    logits_fn: attacks.LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array,
    *,
    eps: float,
    defences: Sequence[base.Defence] = (),
    params: Sequence[base.Params] = (),
    seed: int = 0,
    batch: int = 100,
    draws: int = 10,
    budget: str = "whole",
    gradients: Sequence[str] = (),
    lines: Sequence[Line] | None = None,
    rejects: float | None = None,
    tell: Callable[[str], None] | None = print,
) -> Verdict:
    """Judges a defence in front of any classifier by the whole protocol.

    Expensive: on two cores an image behind `purify` takes about a minute, most of it
    where the defence holds. `--mode=judge` does the same with released models, on all
    devices, and resumes where it was stopped.

    Args:
      logits_fn: of the classifier, `logits_fn(variables, images) -> [B, K]` of floating
        levels.
      variables: for `logits_fn`.
      images: whole levels `[N, H, W, C]`.
      labels: integers `[N]`.
      eps: levels, L-infinity.
      defences: in the order in which an image passes them; none judges the classifier.
      params: of each.
      seed: of attacks and of random defences; the attacker's draws are others.
      batch: images at a time.
      draws: evaluations of a random defence.
      budget: of `protocol`: "whole" or "glance".
      gradients: of `protocol`, for less time; none given: all.
      lines: instead of those of `protocol`; `CLEAN` and `BARE` must be there.
      rejects: for the notes, the share of clean images that detectors may reject.
      tell: is given a line when it is done; None for silence.

    Returns:
      The verdict; `verdict.table()`, `notes()` and `paragraph()` are texts.

    Raises:
      ValueError: as for the attacks and `protocol`; no lines that are needed.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}: {budget!r}")
    base.check_params(defences, params, jax.random.key(seed))
    lines = protocol(defences, budget, gradients) if lines is None else list(lines)
    kinds = [line.kind for line in lines]
    if kinds.count(CLEAN) != 1 or kinds.count(BARE) != 1:
        raise ValueError("lines must have one CLEAN and one BARE")
    attacks.check_eps(eps, whole=True)
    attacks.check_logits(logits_fn, variables, images[:2])
    images, labels = np.asarray(images), np.asarray(labels).astype(np.int32)
    network = functools.partial(logits_fn)  # hashable, whatever `logits_fn` is
    judged = (network, variables, tuple(defences), tuple(params))
    bench = _Bench(*judged, seed, batch, parallel.BatchMaps())
    outcomes, made = [], {}
    for number, line in enumerate(lines, 1):
        alone = line.kind in (BARE, TRANSFER)  # the same images, judged twice
        what = (line.attack, line.preset) if alone else line
        if what not in made:
            made[what] = bench.attacked(line, images, labels, eps)
        outcomes.append(bench.outcome(line, made[what], labels, draws))
        if tell is not None:
            tell(outcomes[-1].told(number, len(lines)))
    return Verdict(
        tuple(outcomes),
        eps,
        defence=" + ".join(defence.name for defence in defences),
        loops=loops(logits_fn, variables, defences, params, images),
        rejects=rejects,
        left_out=verdict.left_out(defences, lines),
    )


def loops(
    logits_fn: attacks.LogitsFn,
    variables: Any,
    defences: Sequence[base.Defence],
    params: Sequence[base.Params],
    images: np.ndarray,
) -> bool:
    """Whether a classifier behind defences has a loop in its forward pass.

    Arguments as for `judge`; of the images only the first counts.
    """
    its = {"classifier": variables, "defences": params, "key": jax.random.key(0)}
    one = jnp.zeros(1, jnp.uint32)

    def network(images: jax.Array) -> jax.Array:
        return _classes(logits_fn, tuple(defences), its, images, one, one)["classes"]

    return attacks.has_loops(network, jnp.asarray(images[:1]))


class _Attacked(NamedTuple):
    """Images that a line's attack has made."""

    images: np.ndarray
    seconds: float
    doubts: dict[str, int]


class _Bench(NamedTuple):
    """What is judged, and with what."""

    logits_fn: attacks.LogitsFn
    variables: Any
    defences: tuple[base.Defence, ...]
    params: tuple[base.Params, ...]
    seed: int
    batch: int
    maps: parallel.BatchMaps

    @property
    def random(self) -> bool:
        """Whether the defence draws."""
        return any(defence.random for defence in self.defences)

    def target(self, line: Line) -> tuple[Target, Any]:
        """What a line's attack looks at, and the variables of that."""
        seen = [
            (defence, its)
            for defence, its in zip(self.defences, self.params, strict=True)
            if not defence.detects
        ]
        if line.kind in (BARE, TRANSFER) or not seen:
            return Target(self.logits_fn), self.variables
        defences, params = zip(*seen, strict=True)
        variables = {"classifier": self.variables, "defences": params}
        if self.random:  # the attacker's own draws
            variables["key"] = jax.random.fold_in(jax.random.key(self.seed), 1)
        truly = line.kind != JOINT and attacks.stops(line.attack, line.preset)
        return Target(self.logits_fn, defences, line.gradient, truly), variables

    def attacked(
        self, line: Line, images: np.ndarray, labels: np.ndarray, eps: float
    ) -> _Attacked:
        """The images of a line."""
        if line.kind == CLEAN:
            return _Attacked(images, 0.0, {})
        target, its = self.target(line)
        variables = {
            "target": its,
            "eps": jnp.float32(line.eps(eps)),
            "key": jax.random.key(self.seed),
        }
        if line.kind == JOINT:
            pairs = zip(self.defences, self.params, strict=True)
            detectors, params = zip(
                *[(one, its) for one, its in pairs if one.detects], strict=True
            )
            variables["detectors"] = params
            variables["key"] = jax.random.fold_in(jax.random.key(self.seed), 1)
            function: Callable = adversaries.evading
            static: tuple = (target, detectors)
        else:
            function = adversaries.attacked
            static = (target, line.attack, line.preset, False)
        found, seconds = self._run(
            function, static, line.name, variables, images, labels
        )
        return _Attacked(
            np.asarray(found["images"]),
            seconds,
            adversaries.doubts(found).get("doubts", {}),
        )

    def outcome(
        self, line: Line, made: _Attacked, labels: np.ndarray, draws: int
    ) -> Outcome:
        """How many of a line's images are taken for what they are, defended."""
        kept = verdict.standing(line, self.defences)
        passed = [
            (defence, its)
            for defence, its, stands in zip(
                self.defences, self.params, kept, strict=True
            )
            if stands
        ]
        defences, params = zip(*passed, strict=True) if passed else ((), ())
        count = draws if any(defence.random for defence in defences) else 1
        each, out, seconds = [], [], made.seconds
        for draw in range(count):
            variables = {
                "classifier": self.variables,
                "defences": params,
                "key": jax.random.key((self.seed + draw) % 2**32),
            }
            static = (self.logits_fn, defences)
            found, took = self._run(
                _classes, static, line.name, variables, made.images, labels
            )
            each.append(np.asarray(found["classes"]))
            out.append(np.asarray(found["rejected"]))
            seconds += took
        last = 1 + int(np.max([labels.max(), *(one.max() for one in each)]))
        labelled = [
            np.asarray(reject.with_rejection(one, gone, label=last))
            for one, gone in zip(each, out, strict=True)
        ]
        return verdict.outcome(line, labelled, labels, last, seconds, made.doubts)

    def _run(
        self,
        function: Callable[..., dict],
        static: tuple,
        what: str,
        variables: dict,
        images: np.ndarray,
        labels: np.ndarray,
    ) -> tuple[dict, float]:
        """A function of images, labels and places, mapped over all devices."""
        places = np.arange(len(images), dtype=np.uint32)
        mapped = self.maps.of(function, static, self.batch, images, labels, places)
        return report.run_batches(mapped, what, variables, images, labels, places)


def _classes(
    logits_fn: attacks.LogitsFn,
    defences: tuple[base.Defence, ...],
    variables: dict,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
) -> dict[str, jax.Array]:
    """What a classifier takes defended images for, and which were rejected."""
    del labels
    own = keys.for_images(variables["key"], indices)
    passed = base.apply(defences, variables["defences"], images, own)
    classes = attacks.predicted(logits_fn, variables["classifier"], passed.images)
    out = passed.rejected
    return {
        "classes": classes,
        "rejected": jnp.zeros(len(images), bool) if out is None else out,
    }
