"""The mode `drift`: what a density model still knows once it decodes by itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend.defences import drift as drifting
from pixeldefend.defences import pipeline, purification
from pixeldefend.experiment import parallel, report, summaries, zoo
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import accuracy, write_rows
from pixeldefend.experiment.workdir import Workdir, command_line, user_errors
from reproduction import comparing


def drift(config: inputs.Config, workdir: Workdir) -> None:
    """Measures bits of clean levels and images mended in one step, by context."""
    settings = config.drift
    with user_errors():
        job = comparing.read_job(config, "drift")
        move = inputs.attack(
            settings.attack, settings.preset, settings.eps_attack, "drift.eps_attack"
        )
        parallel.check_batch(settings.batch, "drift.batch")
        place = zoo.find_released(config.pixelcnn.weights)
        if settings.keep:
            zoo.check_writable(place)
    folder = workdir.open()
    inputs.tell_source(config, job.given)
    clean = job.given.images
    mapped = parallel.BatchMap(
        _program(config, job, move), parallel.batch_for(settings.batch, len(clean))
    )
    variables = {
        "classifier": job.variables,
        "params": job.params,
        "key": jax.random.key(config.seed),
        "eps": jnp.float32(settings.eps_attack),
    }
    labels = job.given.labels.astype(np.int32)
    indices = np.arange(len(clean), dtype=np.uint32)
    found, seconds = report.run_batches(
        mapped, "decoding", variables, clean, labels, indices
    )
    rows = []
    for context in drifting.CONTEXTS:
        bits, classes = found[f"{context}_bits"], found[f"{context}_classes"]
        right = accuracy(classes == job.given.labels)
        own = {
            "context": context,
            "attack": settings.attack,
            "eps_attack": settings.eps_attack,
            "eps_defend": config.purify.eps,
            **summaries.summary(bits),
            "mended": right["accuracy"],
            "low": right["low"],
            "high": right["high"],
        }
        rows.append(job.row(config, own, workdir.hash, seconds))
    write_rows(folder / "rows.jsonl", rows)
    if settings.keep:
        zoo.keep_on_card(place, drift=_told(rows))
    print(report.table(*drift_table(rows)))
    print(
        f"{len(clean)} images ({job.given.source}) after {settings.attack.upper()}, "
        f"eps {settings.eps_attack:g}, on {config.classifier.weights}; a uniform guess "
        f"within eps {config.purify.eps} costs "
        f"{np.log2(2 * config.purify.eps + 1):.2f} bits\n"
        f"results in {folder}"
    )


def _program(config: inputs.Config, job: Any, move: Any) -> Any:
    """A function of variables, images, labels and indices, by name of the results."""
    perturb = pipeline.perturbing(move, job.logits_fn)
    eps = config.purify.eps
    step = functools.partial(
        drifting.drift, job.model, eps=eps, window=purification.window_for(eps)
    )

    def run(variables: dict, images: jax.Array, *more: jax.Array) -> dict:
        attacked, _ = perturb(variables, images, *more)
        found = {}
        for context, one in step(variables["params"], images, attacked).items():
            logits = job.logits_fn(variables["classifier"], one.levels)
            found[f"{context}_bits"] = one.bits
            found[f"{context}_classes"] = jnp.argmax(logits, -1)
        return found

    return run


def _told(rows: list[dict]) -> dict:
    """What a card keeps: who attacked what, and the figures by context."""
    common = ("classifier", "attack", "eps_attack", "eps_defend", "input", "n")
    own = ("bits_per_dim", "half_width_95", "mended", "low", "high")
    found = {name: rows[0][name] for name in common}
    contexts = {row["context"]: {name: row[name] for name in own} for row in rows}
    return found | {"contexts": contexts, "command": command_line()}


def drift_table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table, from rows of `--mode=drift`."""
    header = ["density model", "context", "bits of the clean level (95 %)"]
    header += ["classified correctly after one step (95 %)", "images"]
    lines = [
        [
            row["density_model"],
            row["context"],
            f"{row['bits_per_dim']:.2f} ± {row['half_width_95']:.2f}",
            f"{row['mended']:.1%} ({row['low']:.1%} to {row['high']:.1%})",
            f"{row['n']}",
        ]
        for row in rows
    ]
    return header, lines
