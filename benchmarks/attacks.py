"""How fast are the attacks, beside those of foolbox?

Runs both, in turn and in one process, on the same jitted classifier, the same images
and with the same numbers of steps: FGSM, PGD, DeepFool (L-infinity) and Carlini and
Wagner's L2. Images are attacked with their true labels, floating levels are returned,
since foolbox does not round. Seconds are medians over the repeats, after a first run
that compiles; ratios are medians of ratios within a repeat, so that what slows the
whole machine cancels. The last line is JSON.

  python -m benchmarks.attacks --weights=fashion_mnist/vgg --images=32
  python -m benchmarks.attacks --weights= --images=32    # a small CNN, random weights

foolbox's Carlini-Wagner attack returns a black image where it fails, and counts it as a
success; here it counts as none. Its images have range 1 there, like the units of our
constants.
"""

import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from pixeldefend import attacks
from pixeldefend.experiment import data, zoo
from pixeldefend.models import classifiers

_ATTACKS = ("fgsm", "pgd", "deepfool", "cw_l2")
_WEIGHTS = flags.DEFINE_string(
    "weights", "fashion_mnist/vgg", "a released classifier; empty: a small CNN"
)
_IMAGES = flags.DEFINE_integer("images", 32, "attacked at once", lower_bound=1)
_WHICH = flags.DEFINE_multi_enum(
    "attacks", list(_ATTACKS), _ATTACKS, "give it once for each"
)
_EPS = flags.DEFINE_float("eps", 8.0, "levels, of FGSM and PGD")
_PGD_STEPS = flags.DEFINE_integer("pgd_steps", 40, "of PGD")
_CW_STEPS = flags.DEFINE_integer("cw_steps", 200, "with each constant")
_CW_SEARCH = flags.DEFINE_integer("cw_search_steps", 9, "constants")
_LANES = flags.DEFINE_integer("lanes", None, "images at once; default: the attacks'")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed turns", 1)

LogitsFn = Callable[[Any, jax.Array], jax.Array]
Images = jax.Array


class Contest(NamedTuple):
    """One attack in both packages; each takes and returns levels `[B, H, W, C]`."""

    norm: str
    ours: Callable[..., Any]
    theirs: Callable[[Images, Images], Images]


def _model() -> tuple[LogitsFn, Any, Images, Images]:
    """The classifier, its variables, images as floating levels, and labels."""
    if _WEIGHTS.value:
        model, variables, card = zoo.load_released(_WEIGHTS.value)
        images, labels = data.sample(card["dataset"])
    else:
        model = classifiers.make("cnn", divisor=8)
        images, labels = data.sample("fashion_mnist")
        variables = classifiers.init(model, jax.random.key(0), jnp.asarray(images[:1]))
    logits_fn = functools.partial(classifiers.logits, model)
    chosen = np.arange(_IMAGES.value) % len(images)
    images = jnp.asarray(images[chosen], jnp.float32)
    labels = jnp.asarray(labels[chosen])
    if not _WEIGHTS.value:
        labels = jnp.argmax(logits_fn(variables, images), -1)
    return logits_fn, variables, images, labels


def _foolbox(
    logits_fn: LogitsFn, variables: Any, attack: Any, scale: float, eps: float | None
) -> Callable[[Images, Images], Images]:
    """A run of foolbox's attack, whose images have the range 255 / scale."""
    network = jax.jit(logits_fn)
    model = foolbox.models.JAXModel(
        lambda images: network(variables, scale * images), bounds=(0, 255 / scale)
    )

    def run(images: Images, labels: Images) -> Images:
        criterion = foolbox.criteria.Misclassification(labels)
        # It judges what it found, as we do.
        found = attack(model, images / scale, criterion, epsilons=eps)[0]
        return scale * found

    return run


def _contests(logits_fn: LogitsFn, variables: Any) -> dict[str, Contest]:
    eps, steps, cw_steps = _EPS.value, _PGD_STEPS.value, _CW_STEPS.value
    theirs = functools.partial(_foolbox, logits_fn, variables)
    lanes = {"lanes": _LANES.value}
    cw = {"steps": cw_steps, "initial_const": 1e-2}
    fgsm = foolbox.attacks.LinfFastGradientAttack()
    pgd = foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=0.025, random_start=False)
    cw_l2 = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=_CW_SEARCH.value, stepsize=5e-2, **cw
    )
    options = {
        "fgsm": {"eps": eps},
        "pgd": {"eps": eps, "steps": steps, "random_start": False},
        "deepfool": lanes,
        "cw_l2": {"search_steps": _CW_SEARCH.value, "step_size": 5e-2} | cw | lanes,
    }
    others = {
        "fgsm": theirs(fgsm, 1.0, eps),
        "pgd": theirs(pgd, 1.0, eps),
        "deepfool": theirs(foolbox.attacks.LinfDeepFoolAttack(), 1.0, None),
        "cw_l2": theirs(cw_l2, 255.0, None),
    }
    return {
        name: Contest(
            "l2" if name == "cw_l2" else "linf",
            functools.partial(
                getattr(attacks, name), logits_fn, quantise=False, **options[name]
            ),
            others[name],
        )
        for name in _WHICH.value
    }


def _seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begun


def _judged(
    network: Callable[[Images], Images], images: Images, labels: Images, found: Images
) -> dict[str, np.ndarray]:
    """Success, and distances of the attacks' own norms, `[B]`."""
    change = np.asarray(found - images).reshape(len(images), -1)
    black = np.all(np.asarray(found).reshape(len(images), -1) == 0, 1)
    return {
        "success": np.asarray(jnp.argmax(network(found), -1) != labels) & ~black,
        "linf": np.abs(change).max(1),
        "l2": np.sqrt((change**2).sum(1)),
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _measured(
    contest: Contest, logits_fn: LogitsFn, variables: Any, task: tuple[Images, Images]
) -> dict[str, Any]:
    """Success, distances and seconds of both, in turn."""
    program = jax.jit(contest.ours).lower(variables, *task).compile()
    runs = {
        "ours": lambda: program(variables, *task)[0],
        "foolbox": lambda: contest.theirs(*task),
    }
    network = functools.partial(jax.jit(logits_fn), variables)
    judged = {name: _judged(network, *task, run()) for name, run in runs.items()}
    turns = [[_seconds(run) for run in runs.values()] for _ in range(_REPEATS.value)]
    seconds = dict(zip(runs, np.array(turns).T, strict=True))
    both = np.logical_and(*(j["success"] for j in judged.values()))
    result: dict[str, Any] = {"norm": contest.norm}
    for name, found in judged.items():
        distance = found[contest.norm]
        result[f"{name}_success"] = _digits(found["success"].mean())
        # Of the images that both have fooled: else failing would seem near.
        middle = np.median(distance[both]) if both.any() else np.nan
        result[f"{name}_median_distance"] = _digits(middle)
        result[f"{name}_seconds"] = _digits(np.median(seconds[name]))
        result[f"{name}_seconds_range"] = [
            _digits(np.min(seconds[name])),
            _digits(np.max(seconds[name])),
        ]
    ratios = seconds["foolbox"] / seconds["ours"]
    result["ratio"] = _digits(np.median(ratios))
    result["ratio_range"] = [_digits(np.min(ratios)), _digits(np.max(ratios))]
    memory = program.memory_analysis()
    result["ours_temporary_bytes"] = memory.temp_size_in_bytes if memory else None
    return result


def _table(results: dict[str, dict[str, Any]]) -> None:
    columns = ("success", "median_distance", "seconds")
    print(f"{'':>10}{'':>9}" + "".join(f"{column:>17}" for column in columns))
    for attack, result in results.items():
        for package in ("ours", "foolbox"):
            cells = [result[f"{package}_{column}"] for column in columns]
            row = "".join(f"{cell:>17}" for cell in cells)
            print(f"{attack:>10}{package:>9}{row}")
        low, high = result["ratio_range"]
        print(f"{'':>10}{'ratio':>9}{result['ratio']:>51}  ({low} to {high})")


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    logging.set_verbosity(logging.ERROR)
    logits_fn, variables, *task = _model()
    results = {}
    for name, contest in _contests(logits_fn, variables).items():
        results[name] = _measured(contest, logits_fn, variables, tuple(task))
    _table(results)
    about = {
        "weights": _WEIGHTS.value or "random",
        "images": list(task[0].shape),
        "repeats": _REPEATS.value,
        "device": str(jax.devices()[0].device_kind),
    }
    print(json.dumps(about | results))


if __name__ == "__main__":
    app.run(main)
