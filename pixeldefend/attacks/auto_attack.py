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
from pixeldefend.attacks.climb import attempts, search_ascents
from pixeldefend.attacks.draws import Draws, drawing, fold, judging
from pixeldefend.attacks.fab import FabOptions, search_boundary
from pixeldefend.attacks.outcome import Info, LogitsFn, Network, Task
from pixeldefend.attacks.square import search_squares

# What may have fooled: `AutoInfo.by` is a place in here.
PARTS = ("clean", "apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square")
TARGETS = 9
# Each version's parts, and how often they start anew, for each target if they aim.
VERSIONS = {
    "standard": {"apgd_ce": 1, "apgd_t": 1, "fab_t": 1, "square": 1},
    "plus": {
        "apgd_ce": 5,
        "apgd_dlr": 5,
        "apgd_t": 1,
        "fab": 5,
        "fab_t": 1,
        "square": 1,
    },
    "rand": {"apgd_ce": 1, "apgd_dlr": 1},
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
    sizes = {"steps": steps, "queries": queries, "draws": draws}
    for name, value in sizes.items():
        outcome.check_at_least(name, value, 1)
    pixels.check_images(images)
    outcome.check_key(key, len(images))
    ball = norms.named(norm)
    network = drawing(logits_fn, variables, draws if version == "rand" else 0)
    judge = judging(network, key)
    task = outcome.prepare(judge, images, labels, eps, quantise)
    logits = judge(task.images)
    task = dataclasses.replace(task, queries=task.queries + 1)
    starts = VERSIONS[version]
    options: dict[str, Any] = {"lanes": lanes, "quantise": quantise}
    state = _ascend(network, ball, task, key, logits, starts, steps=steps, **options)
    plain = functools.partial(logits_fn, variables)
    for place, part in enumerate(PARTS):
        if part not in starts or part in _LOSSES:
            continue
        its = fold(key, jnp.full(len(images), place))
        rest = (plain, ball, task, its, state.fooled)
        if part == "square":
            found = search_squares(*rest, queries=queries, **options)
        else:
            aims = TARGETS if part == "fab_t" else 0
            walk = FabOptions(targets=aims, steps=steps, restarts=starts[part])
            found = search_boundary(*rest, logits=logits, options=walk, **options)
        state = state.merged(found, jnp.int32(place))
    return _conclude(
        logits_fn, variables, judge, ball, task, state, quantise, keep_failed
    )


def _ascend(
    network: Draws,
    ball: norms.Norm,
    task: Task,
    key: chex.PRNGKey,
    logits: chex.Array,
    starts: dict[str, int],
    **options: Any,
) -> "_Attacked":
    """The parts that are APGD, on what is not fooled as it is; see `search_ascents`."""
    wrong = outcome.is_fooled(logits, task.labels)
    state = _Attacked(
        levels=task.images,
        by=jnp.where(wrong, 0, -1).astype(jnp.int32),
        flat=jnp.zeros_like(wrong),
        steps=jnp.zeros_like(task.queries),
        queries=jnp.zeros_like(task.queries),
    )
    aims = outcome.rivals(logits, task.labels, TARGETS)
    losses = [(_LOSSES[part], starts[part]) for part in starts if part in _LOSSES]
    tries = attempts(losses, aims.shape[1])
    found = search_ascents(
        network, ball, task, key, state.fooled, tries, aims=aims, **options
    )
    parts = {loss: PARTS.index(part) for part, loss in _LOSSES.items()}
    places = jnp.array([parts[loss] for loss, _ in tries], jnp.int32)
    state = state.merged(found, places[found.attempt])
    return dataclasses.replace(state, flat=found.flat)


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
