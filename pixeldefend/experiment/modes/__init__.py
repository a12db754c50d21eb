"""The modes of `main.py`: each composes the library from a config.

Only this package reads configs. Every mode checks all that the user gave before it
touches a file; what is wrong by then is a `UserError`.
"""

import contextlib
import json
import os
from collections.abc import Callable

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
from pixeldefend.experiment.modes.comparing import compare_purifiers, gradients
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

__all__ = ["MODES", "UserError", "describe_modes", "start"]


def figures(config: inputs.Config, workdir: Workdir) -> None:
    """Draws every figure that there are arrays for, of all data sets."""
    from pixeldefend.experiment.modes import drawing

    drawing.figures(config, workdir)


MODES: dict[str, Callable[[inputs.Config, Workdir], None]] = {
    "purify": purify,
    "attack": attack,
    "evaluate": evaluate,
    "sweep": sweep,
    "choose_threshold": choose_threshold,
    "calibrate": calibrate,
    "detect": detect,
    "compare_purifiers": compare_purifiers,
    "gradients": gradients,
    "figures": figures,
    "score": score,
    "classify": classify,
    "sample": sample,
    "train_pixelcnn": train_pixelcnn,
    "train_classifier": train_classifier,
    "train_puvae": train_puvae,
    "train_magnet": train_magnet,
    "release": release,
    "release_classifier": release_classifier,
    "release_puvae": release_puvae,
    "release_magnet": release_magnet,
}
# Whose weights a mode uses, where that is not the density model alone.
_DEFENCES = ("pixelcnn", "puvae", "magnet")
MODELS = {
    "evaluate": _DEFENCES,
    "calibrate": ("classifier", *_DEFENCES),
    "sweep": _DEFENCES,
    "purify": ("pixelcnn", "classifier"),
    "attack": ("classifier",),
    "compare_purifiers": ("pixelcnn", "classifier"),
    "gradients": ("pixelcnn", "classifier"),
    "figures": (),
    "classify": ("classifier",),
    "release_classifier": ("classifier",),
    "release_puvae": ("classifier", "puvae"),
    "release_magnet": ("classifier", "magnet"),
}
# What else a mode reads.
_LATENT = {"puvae": ("samples", "noise")}
_PURIFIER = {"purify": ("eps",), "squeeze": ("colours", "preset")}
ALSO = {
    "compare_purifiers": {"purify": ("eps",)},
    "gradients": {"purify": ("eps",)},
    "detect": _PURIFIER
    | {"evaluate": ("attacks", "eps_attack", "batch", "images", "input")},
    "evaluate": _PURIFIER | _LATENT | {"reject": ("false_positive_rate",)},
    "calibrate": _LATENT | {"evaluate": ("batch",)},
    "sweep": _PURIFIER
    | _LATENT
    | {"reject": ("false_positive_rate",), "evaluate": ("threshold",)},
    "choose_threshold": _PURIFIER | {"evaluate": ("attacks", "eps_attack", "batch")},
}
# What of a section may change while its folder is used again: each image kept there
# is marked with all that it depends on.
_SHOWN = ("rows", "attacks", "eps_attack", "sources", "threshold")
_GIVEN = ("images", "input", "batch")
_CHOSEN = ("classifier", "calibration", "calibration_images", "false_positive_rates")
FREE = {
    "evaluate": tuple(f"evaluate.{field}" for field in (*_SHOWN, *_GIVEN)),
    "sweep": tuple(
        f"sweep.{field}"
        for field in (
            *("rows", "attacks", "eps", "images", "input"),
            *(
                "evading_images",
                "evading_rows",
                "evading_eps",
                "evading_slope",
                "examples",
            ),
        )
    ),
    "detect": (
        *(f"evaluate.{field}" for field in ("attacks", "eps_attack", *_GIVEN)),
        *(
            f"detect.{field}"
            for field in (*_CHOSEN, "evading_images", "evading_rate", "examples")
        ),
    ),
}


def start(mode: str, config: inputs.Config, workdir: str = "") -> None:
    """Runs a mode.

    Args:
      mode: a key of `MODES`.
      config: see `configs/default.py`.
      workdir: folder for results, "" for the default.

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
    sections = _sections(mode, config)
    with user_errors():
        folder = workdir or f"runs/{config.dataset}/{mode}-{config_hash(sections)}"
        place = Workdir(folder, sections, FREE.get(mode, ()))
    with contextlib.closing(place), contextlib.ExitStack() as stack:
        if not processes.is_first():  # what it says the first one says as well
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        MODES[mode](config, place)


def _sections(mode: str, config: inputs.Config) -> dict:
    """The part of a config that a mode's results depend on."""
    whole = json.loads(config.to_json_best_effort())
    kept = {"mode": mode, "dataset": config.dataset, "seed": config.seed}
    if mode.startswith("train_"):
        section = mode.removeprefix("train_")
        kept[section] = {k: v for k, v in whole[section].items() if k != "weights"}
        if mode == "train_puvae":
            kept["classifier"] = {"weights": whole["classifier"]["weights"]}
    else:
        for section in MODELS.get(mode, ("pixelcnn",)):
            kept[section] = {"weights": whole[section]["weights"]}
        kept[mode] = whole["release" if mode.startswith("release_") else mode]
        for section, fields in ALSO.get(mode, {}).items():
            chosen = {field: whole[section][field] for field in fields}
            kept[section] = kept.get(section, {}) | chosen
        for name in ("save_seconds", "keep", "pictures"):  # how results are written
            kept[mode].pop(name, None)
    return kept


def describe_modes() -> str:
    """One line for every mode."""
    wide = max(map(len, MODES))
    return "\n".join(
        f"{name.ljust(wide)}  {function.__doc__.splitlines()[0]}"
        for name, function in MODES.items()
    )
