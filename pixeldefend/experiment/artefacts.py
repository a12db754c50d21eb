"""Purifying, scoring and classifying as one file that runs without this package.

The file is a program of StableHLO, weights within, as `jax.export` keeps it; whoever
has JAX can call it, on any of the platforms that it was lowered for.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from etils import epath

import pixeldefend
from pixeldefend import detection
from pixeldefend.defences import purification
from pixeldefend.density import likelihood, pixelcnn
from pixeldefend.experiment import files, parallel, processes, zoo
from pixeldefend.models import classifiers

WHAT = ("purify", "score", "defence")
PLATFORMS = ("cpu", "cuda")
PROGRAM, TOLD = "defence.jax", "defence.json"


@dataclasses.dataclass(frozen=True)
class Artefact:
    """What is to be exported, after all checks.

    Attributes:
      what: of `WHAT`.
      function: of the inputs, in their order; gives the outputs by name.
      shape: of an image, (H, W, C).
      eps: the default that is recorded, levels; None where none is taken.
      platforms: of `PLATFORMS`.
      batch: images at a time; 0: any number.
      models: names and hashes of the weights, by kind.
    """

    what: str
    function: Callable[..., dict[str, jax.Array]]
    shape: tuple[int, int, int]
    eps: int | None
    platforms: tuple[str, ...]
    batch: int
    models: dict[str, dict[str, str]]


def export(
    weights: str,
    to: epath.PathLike,
    *,
    what: str = "purify",
    eps: int | None = None,
    classifier: str = "",
    platforms: Sequence[str] = PLATFORMS,
    batch: int = 0,
) -> epath.Path:
    """Writes a defence as a program that runs wherever JAX does, without this package.

    Args:
      weights: a released density model by name, or a folder with one.
      to: folder for `defence.jax`, the program with its weights, and `defence.json`,
        which describes its inputs and outputs and how to call it.
      what: "purify": purified images; "score": `log_probs` and `bits_per_dim`, and
        `p_values` where the model has scores of training images; "defence": purified
        images and a classifier's `logits` of them.
      eps: the ball's, whole levels 0..255, not for "score". The program takes it with
        every call; this one is recorded, and sets the largest that it takes, see
        `purification.largest_eps`.
      classifier: a released classifier, or a folder with one, for "defence" only.
      platforms: that the program is for, of "cpu" and "cuda"; neither has to be here.
      batch: images at a time; 0: any number, and each is compiled when it first comes.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: no such model.
      TypeError, ValueError: it is no density model of images alone, or a setting cannot
        be; the package flatbuffers is not installed.
    """
    folder = files.output_folder(to, "to")
    density_model = zoo.load_released(weights)
    network = zoo.load_released(classifier) if classifier else None
    reference = zoo.load_reference(weights) if what == "score" else None
    made = make(
        density_model,
        what,
        eps=eps,
        reference=reference,
        classifier=network,
        platforms=platforms,
        batch=batch,
    )
    write(folder, made)
    return folder


def make(
    density_model: zoo.Loaded,
    what: str,
    *,
    eps: int | None,
    reference: np.ndarray | None,
    classifier: zoo.Loaded | None,
    platforms: Sequence[str],
    batch: int,
    field: str = "",
) -> Artefact:
    """What is to be exported; see `export`.

    Args:
      density_model: that purifies or scores.
      what: likewise, and `eps`, `platforms` and `batch`.
      reference: scores of its training images, nats, or None.
      classifier: behind it, or None.
      field: of a config, which goes before names in messages.

    Raises:
      TypeError, ValueError: as for `export`.
    """
    model, params, card = density_model
    if what not in WHAT:
        raise ValueError(f"{field}what must be one of {', '.join(WHAT)}: {what!r}")
    if card["kind"] != "pixelcnn":
        raise ValueError(f"the density model is a {card['kind']}, not a pixelcnn")
    if model.classes:
        raise ValueError(
            "the density model is class-conditional, but images have no labels"
        )
    if (eps is None) != (what == "score"):
        raise ValueError(f"{what} takes {'no' if what == 'score' else 'an'} eps: {eps}")
    if (classifier is None) == (what == "defence"):
        takes = "a" if what == "defence" else "no"
        raise ValueError(f"{what} takes {takes} classifier")
    fits = not isinstance(platforms, str) and len(platforms) > 0
    if not fits or any(platform not in PLATFORMS for platform in platforms):
        known = ", ".join(PLATFORMS)
        raise ValueError(f"{field}platforms must be some of {known}: {platforms!r}")
    if batch != 0:
        parallel.check_batch(batch, f"{field}batch")
    try:
        import flatbuffers  # noqa: F401  which JAX keeps programs with
    except ImportError as error:
        raise ValueError(
            "export needs the package flatbuffers: pip install flatbuffers"
        ) from error
    shape, models = tuple(card["image_shape"]), {"pixelcnn": _identity(card)}
    if classifier is not None:
        models["classifier"] = _identity(classifier.card)
        if tuple(classifier.card["image_shape"]) != shape:
            raise ValueError(
                f"the classifier takes images {classifier.card['image_shape']}, the "
                f"density model {[*shape]}"
            )
    if what == "score":
        function = _score(model, params, reference)
    else:
        assert eps is not None  # seen to above
        function = _purify(model, params, purification.window_for(eps), classifier)
    kept = tuple(platform for platform in PLATFORMS if platform in platforms)
    return Artefact(what, function, shape, eps, kept, batch, models)


def _identity(card: dict) -> dict[str, str]:
    name = str(card.get("name", card["dataset"]))
    return {"name": name, "sha256": str(card.get("sha256", ""))}


def _score(
    model: pixelcnn.PixelCNN, params: Any, reference: np.ndarray | None
) -> Callable[..., dict[str, jax.Array]]:
    def score(images: jax.Array) -> dict[str, jax.Array]:
        its, ranked = _as_inputs((params, reference))
        log_probs = likelihood.log_prob(model, its, images)
        bits = likelihood.to_bits_per_dim(log_probs, images.shape[1:])
        found = {"log_probs": log_probs, "bits_per_dim": bits}
        if ranked is not None:
            found["p_values"] = detection.p_values(log_probs, ranked)
        return found

    return score


def _purify(
    model: pixelcnn.PixelCNN, params: Any, window: int, classifier: zoo.Loaded | None
) -> Callable[..., dict[str, jax.Array]]:
    def purify(images: jax.Array, eps: jax.Array) -> dict[str, jax.Array]:
        its = _as_inputs(params)
        # What is beyond the window would be cut on one side only.
        eps = jnp.clip(eps, 0, purification.largest_eps(window))
        purified = purification.purify(model, its, images, eps=eps, window=window)
        found = {"images": purified}
        if classifier is not None:
            network, variables, _ = classifier
            found["logits"] = classifiers.logits(network, variables, purified)
        return found

    return purify


def _as_inputs(params: Any) -> Any:
    """Weights as if they came from outside: XLA would work out all that depends on
    constants alone while it compiles, slowly, and with other last bits.
    """
    return jax.lax.optimization_barrier(jax.tree.map(jnp.asarray, params))


def write(folder: epath.Path, made: Artefact) -> dict:
    """Traces the program and writes it; returns what `defence.json` tells.

    Raises:
      ValueError: a part of it is no program of JAX.
    """
    from jax import export

    count: Any = made.batch
    if not count:
        (count,) = export.symbolic_shape("batch", constraints=["batch >= 1"])
    shapes = [jax.ShapeDtypeStruct((count, *made.shape), np.uint8)]
    if made.eps is not None:
        shapes.append(jax.ShapeDtypeStruct((), np.int32))
    traced = export.export(jax.jit(made.function), platforms=made.platforms)
    try:
        exported = traced(*shapes)
        content = bytes(exported.serialize())
    except NotImplementedError as error:
        raise ValueError(
            "the program calls back into Python, as a torch network does, and cannot "
            "be exported"
        ) from error
    told = _told(made, exported, content)
    if processes.is_first():  # so that a kill leaves no old word beside a new program
        (folder / TOLD).unlink(missing_ok=True)
    with files.whole_file(folder / PROGRAM) as temporary:
        temporary.write_bytes(content)
    files.write_json(folder / TOLD, told)
    return told


def _told(made: Artefact, exported: Any, content: bytes) -> dict:
    """Everything that somebody needs who has nothing but the two files."""

    def array(of: Any, **more: Any) -> dict:
        shape = [n if isinstance(n, int) else str(n) for n in of.shape]
        return {"shape": shape, "dtype": str(of.dtype), **more}

    images, *others = exported.in_avals
    inputs = {"images": array(images, unit="levels 0 to 255")}
    for eps in others:
        assert made.eps is not None  # it takes one
        largest = purification.largest_eps(purification.window_for(made.eps))
        usual = {"default": made.eps, "smallest": 0, "largest": largest}
        inputs["eps"] = array(eps, unit="levels", **usual)
    found = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    arguments = "images" if made.eps is None else f"images, np.int32({made.eps})"
    return {
        "what": made.what,
        "file": PROGRAM,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "models": made.models,
        "inputs": inputs,
        "outputs": {name: array(of) for name, of in found.items()},
        "platforms": list(exported.platforms),
        "versions": {
            "pixeldefend": pixeldefend.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "calling_convention": exported.calling_convention_version,
        },
        "call": [
            "import jax, jax.export, numpy as np",
            f'with open("{PROGRAM}", "rb") as file:',
            "    program = jax.export.deserialize(bytearray(file.read()))",
            "run = jax.jit(program.call)",
            f"images = np.zeros({(made.batch or 8, *made.shape)}, np.uint8)",
            f"found = run({arguments})  # {', '.join(found)}",
        ],
    }
