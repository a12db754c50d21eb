"""What a table is made with: models, settings, and the defences built from them."""

import contextlib
import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from pixeldefend import attacks, keys
from pixeldefend.defences import DEFENCES, base
from pixeldefend.experiment.adversaries import Target
from pixeldefend.experiment.grid import Pipeline
from pixeldefend.experiment.rows import FIGURES, Row
from pixeldefend.experiment.zoo import Loaded

# Of what takes part in a defence, the section that names its weights.
SECTIONS = {"density_model": "pixelcnn", "puvae": "puvae", "magnet": "magnet"}


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a table is made with.

    Attributes:
      classifiers: by the name of their weights.
      models: those of defences, by kind ("density_model").
      settings: sections of a config, which defences are built from.
      seed: of random attacks and defences.
      batch: images at a time, per device.
      thresholds: `[D]` of each detector's D scores, by its name.
    """

    classifiers: dict[str, Loaded]
    models: dict[str, Loaded]
    settings: dict[str, Any]
    seed: int
    batch: int
    thresholds: dict[str, Any] = dataclasses.field(default_factory=dict)

    def defence(
        self, name: str, classifier: str = ""
    ) -> tuple[base.Defence, dict[str, Any]]:
        """A defence and its `params`.

        Args:
          name: of `DEFENCES`.
          classifier: the one behind it, by the name of its weights; "" where the
            defence does not ask.
        """
        kind = DEFENCES[name]
        found = self.models.get(kind.model, Loaded(None, None, {}))
        asked = self.classifiers[classifier][:2] if kind.asks_classifier else None
        given = base.Given(self.settings, found.model, found.params, asked)
        defence, its = kind.build(given)
        if name in self.thresholds:
            its = its | {"threshold": jnp.asarray(self.thresholds[name])}
        return defence, its

    def facts(self, row: Pipeline) -> dict[str, Any]:
        """What a row tells of the settings of its defences, by field."""
        found: dict[str, Any] = {"eps_defend": 0, "threshold": 0.0}
        for name in row.defences:
            defence, params = self.defence(name, row.classifier)
            found |= defence.facts(params)
        return found


def compute(
    defence: base.Defence,
    before: tuple[str, ...],
    seed: int,
    params: base.Params,
    images: jax.Array,
    indices: jax.Array,
) -> base.Computed:
    """What a defence behind others computes, each image with a key of its own."""
    key = keys.for_images(jax.random.key(seed), indices)
    key = base.keys_for([DEFENCES[name] for name in before], key)
    return defence.compute(params, images, key)


def _is_own(made: Any) -> bool:
    """Whether a class or function is somebody's own, not of this package."""
    return made.__module__.partition(".")[0] != "pixeldefend"


def check_defence(
    defence: base.Defence, params: base.Params, shape: tuple[int, int, int]
) -> None:
    """Tries a defence of somebody's own for images `shape`, before anything runs.

    Raises:
      ValueError: it is none; the message says what it lacks.
    """
    kind = type(defence)
    if not _is_own(kind):
        return
    if not dataclasses.is_dataclass(kind) or kind.__hash__ is None:
        raise ValueError(f"{kind.name} must be a dataclass with frozen=True")
    for fact in defence.facts(params):
        if fact not in (*FIGURES, *Row.__dataclass_fields__):
            raise ValueError(f"{kind.name}.facts: a row has no field {fact!r}")
    images = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
    indices = jax.ShapeDtypeStruct((2,), jnp.uint32)

    def run(params: base.Params, images: Any, indices: Any) -> base.Passed:
        computed = compute(defence, (), 0, params, images, indices)
        return defence.decide(params, computed, images)

    try:
        passed = jax.eval_shape(run, params, images, indices)
        if passed.images.shape != images.shape:
            raise ValueError(f"it turns images into shape {passed.images.shape}")
    except NotImplementedError as error:
        raise ValueError(
            f"{kind.name} must define compute, smooth or scores"
        ) from error
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{kind.name} cannot be computed: {error!r}") from error


def source_of(words: Any) -> list[str]:
    """The source of somebody's own defences and attacks (by name), for a fingerprint:
    an edited one gives other results under the same name."""
    found = []
    for word in words:
        if isinstance(word, Target):
            found += source_of(word.defences)
        elif isinstance(word, tuple):
            found += source_of(word)
        made: Any = type(word) if isinstance(word, base.Defence) else None
        if isinstance(word, str) and word in attacks.ATTACKS:
            made = attacks.ATTACKS[word].function
        if made is not None and _is_own(made):
            with contextlib.suppress(OSError, TypeError):  # typed at a prompt
                found.append(inspect.getsource(made))
    return found
