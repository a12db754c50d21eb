"""The modes of `main.py`: each composes the library from a config.

Only this package, and the modes of `reproduction`, read configs. Every mode checks all
that the user gave before it touches a file; what is wrong by then is a `UserError`.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping

import jax
from etils import epath

from pixeldefend.experiment import files, processes
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.modes.attacking import attack
from pixeldefend.experiment.modes.autoencoders import (
    release_magnet,
    release_puvae,
    train_magnet,
    train_puvae,
)
from pixeldefend.experiment.modes.calibrating import calibrate
from pixeldefend.experiment.modes.classifier import (
    classify,
    release_classifier,
    train_classifier,
)
from pixeldefend.experiment.modes.density_model import (
    release,
    sample,
    score,
    train_pixelcnn,
)
from pixeldefend.experiment.modes.detecting import detect
from pixeldefend.experiment.modes.evaluating import evaluate
from pixeldefend.experiment.modes.main_job import purify
from pixeldefend.experiment.modes.sweeping import sweep
from pixeldefend.experiment.modes.thresholds import choose_threshold
from pixeldefend.experiment.workdir import UserError, Workdir, config_hash, user_errors

__all__ = ["MODES", "MOVED", "Mode", "UserError", "describe", "start"]

Run = Callable[[inputs.Config, Workdir], None]


@dataclasses.dataclass(frozen=True)
class Mode:
    """A mode, and what of the config its results depend on.

    Attributes:
      run: what it does; the first line of its docstring tells what for.
      section: its own section of the config; "" for the one of its name.
      weights: sections of the models whose weights it uses.
      reads: fields of further sections.
      free: fields of its sections that may change while its folder is used again,
        since each image kept there is marked with all that it depends on.
    """

    run: Run
    section: str = ""
    weights: tuple[str, ...] = ("pixelcnn",)
    reads: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    free: tuple[str, ...] = ()


def _free(section: str, *fields: str) -> tuple[str, ...]:
    return tuple(f"{section}.{field}" for field in fields)


_DEFENCES = ("pixelcnn", "puvae", "magnet")
_LATENT = {"puvae": ("samples", "noise")}
_PURIFIER = {"purify": ("eps",), "squeeze": ("colours", "preset")}
_GIVEN = ("images", "input", "batch")
MODES = {
    "purify": Mode(purify, weights=("pixelcnn", "classifier")),
    "attack": Mode(attack, weights=("classifier",)),
    "evaluate": Mode(
        evaluate,
        weights=_DEFENCES,
        reads=_PURIFIER | _LATENT | {"reject": ("false_positive_rate",)},
        free=_free(
            "evaluate", "rows", "attacks", "eps_attack", "sources", "threshold", *_GIVEN
        ),
    ),
    "sweep": Mode(
        sweep,
        weights=_DEFENCES,
        reads=_PURIFIER
        | _LATENT
        | {"reject": ("false_positive_rate",), "evaluate": ("threshold",)},
        free=_free(
            "sweep",
            *("rows", "attacks", "eps", "images", "input", "examples"),
            *("evading_images", "evading_rows", "evading_eps", "evading_slope"),
        ),
    ),
    "choose_threshold": Mode(
        choose_threshold,
        reads=_PURIFIER | {"evaluate": ("attacks", "eps_attack", "batch")},
    ),
    "calibrate": Mode(
        calibrate,
        weights=("classifier", *_DEFENCES),
        reads=_LATENT | {"evaluate": ("batch",)},
    ),
    "detect": Mode(
        detect,
        reads=_PURIFIER
        | {"evaluate": ("attacks", "eps_attack", "batch", "images", "input")},
        free=_free("evaluate", "attacks", "eps_attack", *_GIVEN)
        + _free(
            "detect",
            *("classifier", "calibration", "calibration_images"),
            *("false_positive_rates", "evading_images", "evading_rate", "examples"),
        ),
    ),
    "score": Mode(score),
    "classify": Mode(classify, weights=("classifier",)),
    "sample": Mode(sample),
    "train_pixelcnn": Mode(train_pixelcnn),
    "train_classifier": Mode(train_classifier),
    "train_puvae": Mode(train_puvae),
    "train_magnet": Mode(train_magnet),
    "release": Mode(release),
    "release_classifier": Mode(release_classifier, "release", ("classifier",)),
    "release_puvae": Mode(release_puvae, "release", ("classifier", "puvae")),
    "release_magnet": Mode(release_magnet, "release", ("classifier", "magnet")),
}
# Those that reproduce the papers' figures have a program of their own.
MOVED = dict.fromkeys(
    ("figures", "compare_purifiers", "gradients"), "python -m reproduction"
)


def start(
    name: str,
    config: inputs.Config,
    workdir: str = "",
    modes: Mapping[str, Mode] = MODES,
) -> None:
    """Runs a mode.

    Args:
      name: of the mode, a key of `modes`.
      config: see `configs/default.py`.
      workdir: folder for results, "" for the default.
      modes: those that there are.

    Raises:
      UserError: something that the user gave is wrong.
      interruption.Interrupted: the run was asked to stop; started again it goes on.
    """
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed must be from 0 to 2^32 - 1: {config.seed}")
    with user_errors():
        given = jax.tree.leaves(config.to_dict())
        files.prepare(text for text in (workdir, *given) if isinstance(text, str))
    if config.compilation_cache:
        folder = epath.Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    sections = _sections(name, modes[name], config)
    with user_errors():
        folder = workdir or f"runs/{config.dataset}/{name}-{config_hash(sections)}"
        place = Workdir(folder, sections, modes[name].free)
    with contextlib.closing(place), contextlib.ExitStack() as stack:
        if not processes.is_first():  # what it says the first one says as well
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        modes[name].run(config, place)


def _sections(name: str, mode: Mode, config: inputs.Config) -> dict:
    """The part of a config that a mode's results depend on."""
    whole = json.loads(config.to_json_best_effort())
    kept = {"mode": name, "dataset": config.dataset, "seed": config.seed}
    if name.startswith("train_"):
        section = name.removeprefix("train_")
        kept[section] = {k: v for k, v in whole[section].items() if k != "weights"}
        if name == "train_puvae":
            kept["classifier"] = {"weights": whole["classifier"]["weights"]}
        return kept
    for section in mode.weights:
        kept[section] = {"weights": whole[section]["weights"]}
    kept[name] = whole[mode.section or name]
    for section, fields in mode.reads.items():
        chosen = {field: whole[section][field] for field in fields}
        kept[section] = kept.get(section, {}) | chosen
    for field in ("save_seconds", "keep", "pictures"):  # how results are written
        kept[name].pop(field, None)
    return kept


def describe(modes: Mapping[str, Mode]) -> str:
    """One line for every mode."""
    wide = max(map(len, modes))
    return "\n".join(
        f"{name.ljust(wide)}  {mode.run.__doc__.splitlines()[0]}"
        for name, mode in modes.items()
    )
