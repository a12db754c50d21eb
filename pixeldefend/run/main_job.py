"""The main job: purify images and show what that did."""

import jax.numpy as jnp
import numpy as np
from etils import epath

import pixeldefend
from pixeldefend import (
    checkpoint,
    data,
    defence,
    evaluate,
    figures,
    parallel,
    purification,
    report,
)
from pixeldefend.parts import Parts
from pixeldefend.run import inputs
from pixeldefend.workdir import Workdir, config_hash, user_errors


def purify(config: inputs.Config, workdir: Workdir) -> None:
    """Perturbs images if asked, purifies them, and shows what that did."""
    settings = config.purify
    with user_errors():
        model, params, card = inputs.density_model(config)
        reference = checkpoint.load_reference(config.pixelcnn.weights)
        _check(settings)
        width = purification.width_for(settings.eps)
        given = inputs.chosen(config, "purify", card["image_shape"])
        attack = settings.attack
        if attack == "auto":
            attack = "none" if given.own else "rand"
        defend = defence.perturb_and_purify(
            model, attack, config.seed, width=width, solver=settings.solver
        )
        mapped = parallel.BatchMap(defend, settings.batch)
        if given.own:
            workdir.check_outside(settings.input)
        workdir.check_own("purified")
    folder = workdir.open()
    kept = _kept(folder, workdir.hash, given, card, settings.save_seconds)
    variables = {
        "params": params,
        "eps": jnp.int32(settings.eps),
        "threshold": jnp.float32(settings.threshold),
        "eps_attack": jnp.float32(settings.eps_attack),
    }
    clean = given.images
    indices = np.arange(len(clean), dtype=np.uint32)
    result, seconds = report.run_batches(
        mapped,
        "purifying",
        variables,
        clean,
        indices,
        parts=kept,
        each=lambda first, batch: _write_pictures(folder, given, first, batch),
    )
    _write_purified(folder, given, result)
    titles = {"clean": "as given" if given.own else "clean"}
    if attack != "none":
        titles["perturbed"] = f"{attack.upper()}, eps {settings.eps_attack:g}"
    titles["purified"] = f"purified, eps {settings.eps}"
    if settings.threshold:
        titles["purified"] += f" from {settings.threshold:g} bits/dim"
    stages = evaluate.stages(titles, clean, result, reference)
    identity = {
        "dataset": config.dataset,
        "density_model": config.pixelcnn.weights,
        "defence": "purify_adaptive" if settings.threshold else "purify",
        "attack": attack,
        "eps_attack": settings.eps_attack if attack != "none" else 0.0,
        "eps_defend": settings.eps,
        "threshold": settings.threshold,
        "input": given.source,
        "own": given.own,
        # The noise looks at nothing.
        "threat": None if attack == "none" else "grey-box",
    }
    provenance = {
        "seconds": round(seconds, 3),
        "device": parallel.devices(),
        "config": workdir.hash,
        "version": pixeldefend.__version__,
    }
    row = evaluate.purification_row(identity, stages) | provenance
    evaluate.write_rows(folder / "rows.jsonl", [row])
    kept.remove()  # only now is everything elsewhere
    print(evaluate.purification_table(stages))
    print(
        f"{len(clean)} images, {len(clean) / seconds:.1f} images/s (three scorings and "
        f"the purification) on {parallel.devices()}, compiled in "
        f"{mapped.compile_seconds:.1f} s"
    )
    print(f"results in {folder}")


def _check(settings: inputs.Config) -> None:
    """Raises ValueError for fields of `purify` that are out of range or unknown."""
    if settings.attack not in ("auto", *defence.ATTACKS):
        raise ValueError(
            f"unknown attack {settings.attack!r}: one of auto, "
            f"{', '.join(defence.ATTACKS)}"
        )
    if not 0 <= settings.eps_attack <= 255:
        raise ValueError(
            f"eps_attack must be between 0 and 255 levels: {settings.eps_attack}"
        )
    if not 0 <= settings.threshold < float("inf"):
        raise ValueError(
            f"threshold must be finite, in bits/dim from 0: {settings.threshold}"
        )
    if not settings.save_seconds >= 0:
        raise ValueError(f"save_seconds must not be negative: {settings.save_seconds}")
    if settings.solver not in purification.SOLVERS:
        raise ValueError(
            f"unknown solver {settings.solver!r}: one of "
            f"{', '.join(purification.SOLVERS)}"
        )
    parallel.check_batch(settings.batch, "purify.batch")


def _kept(
    folder: epath.Path, config: str, given: data.Input, card: dict, pause: float
) -> Parts:
    """What a killed run of the same purification left; else, a clean start."""
    identity = {
        "config": config,
        "images": checkpoint.fingerprint(given.images),
        "names": given.names,
        "weights": card["sha256"],
        "version": pixeldefend.__version__,
    }
    kept = Parts(folder / "parts", config_hash(identity), pause)
    # What earlier runs of this config wrote here, perhaps of other images.
    for suffix in (".npz", ".png"):
        for old in (folder / "purified").glob(f"*{suffix}"):
            old.unlink()
    if kept.done:
        print(f"going on after {kept.done} of {len(given.images)} images")
        first = 0
        for part in kept.results:
            _write_pictures(folder, given, first, part)
            first += len(part["purified"])
    return kept


def _write_pictures(
    folder: epath.Path, given: data.Input, first: int, result: dict
) -> None:
    """A PNG for each of the user's own images, of which `first` is the batch's first.

    Written before the batch counts as done.
    """
    if not given.own:
        return
    names = given.names[first : first + len(result["purified"])]
    for name, image in zip(names, result["purified"], strict=True):
        figures.save(figures.picture(image), folder / "purified" / f"{name}.png")


def _write_purified(folder: epath.Path, given: data.Input, result: dict) -> None:
    """All arrays and a before/after picture."""
    perturbed, purified = result["perturbed"], result["purified"]
    labels = {} if given.labels is None else {"labels": given.labels.astype(np.uint8)}
    checkpoint.write_arrays(
        folder / "purified" / f"{given.source}.npz",
        clean=given.images,
        images=perturbed,
        purified=purified,
        **labels,
    )
    rows = {"clean": given.images, "perturbed": perturbed, "purified": purified}
    if np.array_equal(given.images, perturbed):
        del rows["perturbed"]
    shown = [images[:12] for images in rows.values()]
    figures.save(figures.grid(shown, list(rows)), folder / "figures/before_after.png")
