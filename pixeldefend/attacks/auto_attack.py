"""AutoAttack: attacks of different kinds, of which one suffices."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.extend import core

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.apgd import search_ascents
from pixeldefend.attacks.draws import drawing, fold, judging
from pixeldefend.attacks.fab import FabOptions, search_boundary
from pixeldefend.attacks.outcome import Info, LogitsFn, Network, Task
from pixeldefend.attacks.square import search_squares

# What may have fooled: `AutoInfo.by` is a place in here.
PARTS = ("clean", "apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square")
TARGETS = 9
# Each version's parts, and how often APGD and FAB start anew.
VERSIONS = {
    "standard": (("apgd_ce", "apgd_t", "fab_t", "square"), 1),
    "plus": (("apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"), 5),
    "rand": (("apgd_ce", "apgd_dlr"), 1),
}
_LOSSES = {"apgd_ce": "ce", "apgd_dlr": "dlr", "apgd_t": "targeted_dlr"}


@struct.dataclass
class AutoInfo(Info):
    """What AutoAttack did to each image, and what throws doubt on its verdict.

    Attributes:
      by: `[B]` int32, what fooled, a place in `PARTS`; -1 where nothing did. Where
        `square` fools what the gradients did not, these are no guide to the network.
      flat: `[B]` bool: a gradient was zero, so that nothing led on.
      random: `[B]` bool: another draw of the network gives other logits, which only the
        version "rand" is made for.
      loops: `[B]` bool, all alike: the network has a loop in it, such as a decoder or
        an optimisation, through which gradients may mislead.
    """

    by: chex.Array
    flat: chex.Array
    random: chex.Array
    loops: chex.Array


def auto_attack(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey,
    *,
    eps: chex.Array | float,
    norm: str = "linf",
    version: str = "standard",
    steps: int = 100,
    queries: int = 5000,
    draws: int = 20,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, AutoInfo]:
    """AutoAttack: APGD, FAB and Square Attack, each on what the others left.

    Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of
    Diverse Parameter-free Attacks (ICML 2020), with its authors' settings. The order of
    the parts of "plus" is another, which changes nothing but which of them is told to
    have fooled.

    Args:
      logits_fn: this and what is not listed as for `apgd`.
      version: "standard": APGD on cross-entropy, then APGD and FAB aimed at nine
        classes each, then Square Attack. "plus": those on the plain ratio of
        differences of logits and untargeted FAB too, with five starts. "rand", for a
        random `logits_fn`: both untargeted APGD over draws.
      steps: of APGD and FAB from each start.
      queries: of Square Attack.
      draws: of "rand".

    Returns:
      Levels `[B, H, W, C]`, within eps of `images` and 0..255, and what was done.
      Images that are misclassified as they are come back so.

    Raises:
      ValueError: as for `apgd`; an unknown version; a network with a loop in it or
        random ones are told of in `AutoInfo`, not refused.
    """
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise ValueError(f"version must be one of {known}: {version!r}")
    outcome.check_at_least("steps", steps, 1)
    outcome.check_at_least("queries", queries, 1)
    outcome.check_at_least("draws", draws, 1)
    pixels.check_images(images)
    outcome.check_key(key, len(images))
    ball = norms.named(norm)
    parts, restarts = VERSIONS[version]
    network = drawing(logits_fn, variables, draws if version == "rand" else 0)
    judge = judging(network, key)
    task = outcome.prepare(judge, images, labels, eps, quantise)
    logits = judge(task.images)
    wrong = outcome.is_fooled(logits, task.labels)
    state = _Attacked(
        levels=task.images,
        by=jnp.where(wrong, 0, -1).astype(jnp.int32),
        flat=jnp.zeros_like(wrong),
        steps=jnp.zeros_like(task.queries),
        queries=task.queries + 1,
    )
    options: dict[str, Any] = {"lanes": lanes, "quantise": quantise}

    rivals = outcome.rivals(logits, task.labels, TARGETS)
    tries = _attempts(parts, rivals.shape[1], restarts)
    ascents = search_ascents(
        network,
        ball,
        task,
        key,
        state.fooled,
        [_LOSSES[part] for part, _ in tries],
        aims=rivals[:, [rank for _, rank in tries]],
        steps=steps,
        **options,
    )
    names = jnp.array([PARTS.index(part) for part, _ in tries], jnp.int32)
    merged = state.merged(ascents, names[ascents.attempt])
    state = dataclasses.replace(merged, flat=ascents.flat)
    plain = functools.partial(logits_fn, variables)
    for place, part in enumerate(PARTS):
        if part not in parts or part in _LOSSES:
            continue
        its = fold(key, jnp.full(len(images), place))
        if part == "square":
            found = search_squares(
                plain, ball, task, its, state.fooled, queries=queries, **options
            )
        else:
            aims = TARGETS if part == "fab_t" else 0
            starts = restarts if part == "fab" else 1
            walk = FabOptions(targets=aims, steps=steps, restarts=starts)
            found = search_boundary(
                plain,
                ball,
                task,
                its,
                state.fooled,
                logits=logits,
                options=walk,
                **options,
            )
        state = state.merged(found, jnp.int32(place))
    return _conclude(
        logits_fn, variables, judge, ball, task, state, quantise, keep_failed
    )


def _attempts(
    parts: tuple[str, ...], targets: int, restarts: int
) -> list[tuple[str, int]]:
    """Those of APGD: their part, and which class they aim at if they do."""
    return [
        (part, rank)
        for part in parts
        if part in _LOSSES
        for rank in range(targets if part == "apgd_t" else 1)
        for _ in range(1 if part == "apgd_t" else restarts)
    ]


@struct.dataclass
class _Attacked:
    """What the parts have done so far; see `AutoInfo`."""

    levels: chex.Array
    by: chex.Array
    flat: chex.Array
    steps: chex.Array
    queries: chex.Array

    @property
    def fooled(self) -> chex.Array:
        """`[B]` bool, which need no further attack."""
        return self.by >= 0

    def merged(self, found: outcome.Found, part: chex.Array) -> "_Attacked":
        """With what one more part has found; `part` is its place, or `[B]` of them."""
        tried = ~self.fooled
        return dataclasses.replace(
            self,
            levels=jnp.where(norms.each(tried), found.levels, self.levels),
            by=jnp.where(tried & found.success, part, self.by),
            steps=self.steps + found.steps,
            queries=self.queries + found.queries,
        )


def _conclude(
    logits_fn: LogitsFn,
    variables: Any,
    judge: Network,
    ball: norms.Norm,
    task: Task,
    state: _Attacked,
    quantise: bool,
    keep_failed: bool,
) -> tuple[chex.Array, AutoInfo]:
    """Judges what is returned, and looks for what throws doubt on it."""
    found = outcome.Found(state.levels, state.fooled, state.steps, state.queries)
    rest = {"quantise": quantise, "keep_failed": keep_failed}
    images, info = outcome.conclude_search(judge, task, found, size=ball.size, **rest)
    random = jnp.zeros_like(info.success)
    if isinstance(variables, dict) and "key" in variables:
        other = variables | {"key": jax.random.fold_in(variables["key"], 1)}
        logits = [logits_fn(v, task.images) for v in (variables, other)]
        random = jnp.any(logits[0] != logits[1], -1)
    loops = has_loops(lambda images: logits_fn(variables, images), task.images)
    told = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
    return images, AutoInfo(
        **told,
        by=jnp.where(info.success, state.by, -1),
        flat=state.flat,
        random=random,
        loops=jnp.full_like(info.success, loops),
    )


def has_loops(network: Network, images: chex.Array) -> bool:
    """Whether a network's forward pass has a loop in it, `while` or `scan`."""

    def found_in(jaxpr: Any) -> bool:
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("while", "scan"):
                return True
            if any(map(found_in, core.jaxprs_in_params(equation.params))):
                return True
        return False

    return found_in(jax.make_jaxpr(network)(images).jaxpr)
