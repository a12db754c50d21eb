"""The modes `compare_purifiers` and `gradients`: another purifier than the greedy one,
and what an attacker's gradients find behind that."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import attacks
from pixeldefend.attacks import gradients as attack_gradients
from pixeldefend.defences import base, pipeline, purification
from pixeldefend.density import likelihood, pixelcnn
from pixeldefend.experiment import data, files, measure, parallel, report, summaries
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import write_rows
from pixeldefend.experiment.store import Store, fingerprint
from pixeldefend.experiment.workdir import Workdir, user_errors
from pixeldefend.models import classifiers
from reproduction import likelihood_ascent

_BARE = "none"


@dataclasses.dataclass(frozen=True)
class Job:
    """A density model and a classifier, with images that both take."""

    model: pixelcnn.PixelCNN
    params: Any
    classifier: classifiers.Classifier
    variables: Any
    given: data.Input
    shas: dict[str, str]

    @property
    def logits_fn(self) -> Callable:
        """Of the classifier."""
        return classifiers.logits_fn(self.classifier)

    def row(self, config: inputs.Config, own: dict, of: str, seconds: float) -> dict:
        """A row with what is a mode's own; `of` is the hash of its config."""
        names = {
            "dataset": inputs.dataset(config),
            "density_model": config.pixelcnn.weights,
            "classifier": config.classifier.weights,
        }
        given = measure.images(self.given)
        return names | own | self.shas | given | measure.provenance(of, seconds)


def read_job(config: inputs.Config, name: str) -> Job:
    """Reads and checks what modes about a density model and a classifier take."""
    settings = config[name]
    model, params, card = inputs.density_model(config)
    inputs.check_dataset(config, config.pixelcnn.weights, card)
    classifier, variables, other = inputs.classifier(config)
    inputs.check_dataset(config, config.classifier.weights, other)
    purification.window_for(config.purify.eps)
    if settings.images < 1:
        raise ValueError(f"{name}.images must be at least 1: {settings.images}")
    source = inputs.source(config, settings.input)
    given = inputs.read(config, source, settings.images, card["image_shape"])
    if given.labels is None:
        raise ValueError(f"{source} has no labels, which an attack needs")
    inputs.check_labels(given, config.classifier.weights, classifier.classes)
    shas = {
        "classifier_sha256": other["sha256"][:8],
        "density_model_sha256": card["sha256"][:8],
    }
    return Job(model, params, classifier, variables, given, shas)


def compare_purifiers(config: inputs.Config, workdir: Workdir) -> None:
    """Compares L-BFGS-B from random starts with greedy decoding (Figure 5)."""
    settings = config.compare_purifiers
    with user_errors():
        job = read_job(config, "compare_purifiers")
        field = "compare_purifiers.eps_attack"
        move = inputs.attack(
            settings.attack, settings.preset, settings.eps_attack, field
        )
        for field in ("starts", "iterations"):
            if settings[field] < 1:
                raise ValueError(
                    f"compare_purifiers.{field} must be at least 1: {settings[field]}"
                )
    folder = workdir.open()
    inputs.tell_source(config, job.given)
    seen = _attacked_and_purified(config, job, move)
    kept = Store(folder)
    ended, asked = _searched(config, kept, job, seen["perturbed"], workdir.hash)
    found = {name: _bits(job, images) for name, images in seen.items()}
    bits = _bits(job, ended.reshape(-1, *ended.shape[2:])).reshape(ended.shape[:2])
    files.write_arrays(folder / "purifiers.npz", lbfgs_b=bits, **found)
    rows, lines = [], []
    for name, every in (found | {"lbfgs_b": bits}).items():
        searched = name == "lbfgs_b"
        # Searches for one image are no independent images; their means are.
        scores = every.reshape(len(every), -1)
        less = likelier = None
        if name in ("purified", "lbfgs_b"):
            less = round(float(np.mean(scores > found["perturbed"][:, None])), 4)
        if searched:
            likelier = round(float(np.mean(scores < found["purified"][:, None])), 4)
        own = {
            "stage": name,
            "attack": settings.attack,
            "preset": attacks.usual(settings.attack, settings.preset),
            "eps_attack": settings.eps_attack,
            "eps_defend": config.purify.eps,
            "iterations": settings.iterations,
            "starts": settings.starts if searched else 0,
            **summaries.summary(scores.mean(1)),
            "less_likely_than_attacked": less,
            "likelier_than_purified": likelier,
            "queries": float(np.mean(asked)) if searched else None,
        }
        seconds = kept.seconds if searched else 0.0
        rows.append(job.row(config, own, workdir.hash, seconds))
        lines.append(
            [
                name,
                summaries.interval(scores.mean(1)),
                str(len(scores)),
                "" if less is None else f"{less:.1%}",
            ]
        )
    write_rows(folder / "rows.jsonl", rows)
    header = ["", "bits/dim (mean, 95 %)", "images", "less likely than attacked"]
    print(report.table(header, lines))
    print(
        f"L-BFGS-B: {settings.starts} random starts for each of "
        f"{len(job.given.images)} images, at most {settings.iterations} iterations\n"
        f"results in {folder}"
    )


def _attacked_and_purified(
    config: inputs.Config, job: Job, move: Callable
) -> dict[str, np.ndarray]:
    """Images by stage."""
    perturb = pipeline.perturbing(move, job.logits_fn)
    window = purification.window_for(config.purify.eps)

    def run(variables: dict, *arrays: jax.Array) -> dict:
        perturbed, _ = perturb(variables, *arrays)
        purified = purification.purify(
            job.model,
            variables["params"],
            perturbed,
            eps=config.purify.eps,
            window=window,
        )
        return {"perturbed": perturbed, "purified": purified}

    clean = job.given.images
    mapped = parallel.BatchMap(run, parallel.batch_for(128, len(clean)))
    variables = {
        "classifier": job.variables,
        "params": job.params,
        "key": jax.random.key(config.seed),
        "eps": jnp.float32(config.compare_purifiers.eps_attack),
    }
    labels = job.given.labels.astype(np.int32)
    found = mapped(variables, clean, labels, np.arange(len(clean), dtype=np.uint32))
    return {"clean": clean} | found


def _bits(job: Job, images: np.ndarray) -> np.ndarray:
    """Bits/dim `[N]`."""
    mapped = inputs.score_map(job.model, parallel.batch_for(128, len(images)))
    log_probs = mapped(job.params, images)
    return np.asarray(likelihood.to_bits_per_dim(log_probs, images.shape[1:]))


def _searched(
    config: inputs.Config, kept: Store, job: Job, attacked: np.ndarray, of: str
) -> tuple[np.ndarray, np.ndarray]:
    """Where all searches end, `[N, starts, H, W, C]` uint8, and how often each asked,
    `[N, starts]`."""
    settings = config.compare_purifiers

    def value_and_slope(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_prob = functools.partial(likelihood.log_prob, job.model, params)
        return attack_gradients.score(log_prob, images)

    batch = parallel.batch_for(128, settings.starts)
    mapped = functools.partial(parallel.BatchMap(value_and_slope, batch), job.params)

    def search(i: int) -> dict[str, np.ndarray]:
        ball = purification.bounds(jnp.asarray(attacked[i][None]), config.purify.eps)
        lower, upper = (np.asarray(bound)[0] for bound in ball)
        rng = np.random.default_rng((config.seed, i))
        starts = rng.uniform(lower, upper, (settings.starts, *lower.shape))
        ended, asked = likelihood_ascent.climb(
            mapped,
            starts.astype(np.float32),
            lower=lower,
            upper=upper,
            iterations=settings.iterations,
        )
        return {"images": np.rint(ended).astype(np.uint8), "asked": asked}

    progress = report.Progress("L-BFGS-B")
    found = []
    for i, image in enumerate(attacked):
        its_mark = fingerprint((of, job.shas), image)
        one = kept.find("searches", f"{i}", its_mark)
        if one is None:
            own = functools.partial(search, i)
            one = kept.keep("searches", f"{i}", its_mark, own)
        found.append((one["images"], one["asked"]))
        progress.update((i + 1) / len(attacked), f"{len(found)} images")
    progress.close()
    ended, asked = (np.stack(arrays) for arrays in zip(*found, strict=True))
    return ended, asked


def gradients(config: inputs.Config, workdir: Workdir) -> None:
    """Measures gradients through the purifier, which the paper says vanish (4.4)."""
    settings = config.gradients
    with user_errors():
        job = read_job(config, "gradients")
        parallel.check_batch(settings.batch, "gradients.batch")
    folder = workdir.open()
    inputs.tell_source(config, job.given)
    batch = parallel.batch_for(settings.batch, len(job.given.images))
    variables = {
        "classifier": job.variables,
        "defences": ({"params": job.params, "eps": jnp.int32(config.purify.eps)},),
    }
    labels = job.given.labels.astype(np.int32)
    slopes, rows = {}, []
    for name in (_BARE, *base.GRADIENTS):
        mapped = parallel.BatchMap(_loss_slope(_behind(config, job, name)), batch)
        slopes[name], seconds = report.run_batches(
            mapped, f"slope {name}", variables, job.given.images, labels
        )
        own = {
            "slope": None if name == _BARE else name,
            "eps_defend": 0 if name == _BARE else config.purify.eps,
            **slope_figures(slopes[name], slopes[_BARE]),
        }
        rows.append(job.row(config, own, workdir.hash, seconds))
    write_rows(folder / "rows.jsonl", rows)
    print(report.table(*slope_table(rows)))
    print(f"of the cross-entropy, at {len(labels)} clean images ({job.given.source})")
    print(f"results in {folder}")


def slope_figures(found: np.ndarray, bare: np.ndarray) -> dict:
    """What a row tells of gradients.

    Args:
      found: of the loss with respect to the levels, `[N, H, W, C]`.
      bare: those of the classifier without a defence, for comparison.

    Returns:
      `n`; of the L2 norms the median and the quartiles, nats per level; `zero`, the
      share of values that are exactly zero; `cosine` (median) and `same_sign` (mean
      share of values) with those of `bare`.
    """
    flat, other = (a.reshape(len(a), -1).astype(np.float64) for a in (found, bare))
    norms = np.linalg.norm(flat, axis=-1)
    low, middle, high = np.quantile(norms, [0.25, 0.5, 0.75])
    lengths = norms * np.linalg.norm(other, axis=-1)
    cosines = np.sum(flat * other, -1) / np.where(lengths > 0, lengths, 1)
    shares = {
        "zero": np.mean(flat == 0),
        "cosine": np.median(cosines),
        "same_sign": np.mean(np.sign(flat) == np.sign(other)),
    }
    return {
        "n": len(flat),
        "norm": float(f"{middle:.4g}"),
        "norm_low": float(f"{low:.4g}"),
        "norm_high": float(f"{high:.4g}"),
    } | {name: round(float(share), 4) for name, share in shares.items()}


def slope_table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table of gradients, from rows of `--mode=gradients`."""
    header = ["slope of the purifier", "L2 norm (median, quartiles)", "zero"]
    header += ["cosine with bare", "images/s"]
    lines = [
        [
            row["slope"] or "no purifier",
            f"{row['norm']:.3g} ({row['norm_low']:.3g} to {row['norm_high']:.3g})",
            f"{row['zero']:.1%}",
            f"{row['cosine']:.2f}",
            f"{row['n'] / row['seconds']:.3g}",
        ]
        for row in rows
    ]
    return header, lines


def _loss_slope(logits_fn: Callable) -> Callable:
    """A function of all variables, images and labels: the loss's gradient."""

    def run(variables: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
        network = functools.partial(logits_fn, variables)
        levels = images.astype(jnp.float32)
        return attack_gradients.cross_entropy(network, levels, labels)[1]

    return run


def _behind(config: inputs.Config, job: Job, slope: str) -> Callable:
    """The classifier alone, or behind the purifier, as a function of all variables."""
    if slope == _BARE:
        return lambda variables, images: job.logits_fn(variables["classifier"], images)
    window = purification.window_for(config.purify.eps)
    purify = purification.Purify(job.model, window)
    return base.behind((purify,), job.logits_fn, gradient=slope)
