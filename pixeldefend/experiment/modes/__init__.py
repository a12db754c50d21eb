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

from pixeldefend.experiment import data, files, parallel, processes, zoo
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.modes.attacking import attack
from pixeldefend.experiment.modes.calibrating import calibrate
from pixeldefend.experiment.modes.classifier import classify
from pixeldefend.experiment.modes.density_model import sample, score
from pixeldefend.experiment.modes.detecting import detect
from pixeldefend.experiment.modes.evaluating import evaluate
from pixeldefend.experiment.modes.exporting import export
from pixeldefend.experiment.modes.importing import import_weights
from pixeldefend.experiment.modes.judging import judge
from pixeldefend.experiment.modes.main_job import purify
from pixeldefend.experiment.modes.releasing import release
from pixeldefend.experiment.modes.reporting import report
from pixeldefend.experiment.modes.sweeping import sweep
from pixeldefend.experiment.modes.training import train
from pixeldefend.experiment.workdir import UserError, Workdir, config_hash, user_errors

__all__ = ["MODES", "MOVED", "Mode", "UserError", "describe", "reads", "start"]

Run = Callable[[inputs.Config, Workdir], None]


@dataclasses.dataclass(frozen=True)
class Mode:
    """A mode, and what of the config its results depend on.

    Attributes:
      run: what it does; the first line of its docstring tells what for.
      weights: sections of the models whose weights it uses.
      kinds: of a mode for any kind of model, which its section's `model` names: for
        each kind, sections of models whose weights it uses.
      reads: fields of further sections.
      free: fields of its sections that may change while its folder is used again,
        since each image kept there is marked with all that it depends on.
      section: its own, where that is not called as the mode is.
    """

    run: Run
    weights: tuple[str, ...] = ("pixelcnn",)
    kinds: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    reads: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    free: tuple[str, ...] = ()
    section: str = ""

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """Sections of the models whose weights it uses, for a kind of model too."""
        return (*self.weights, *self.kinds.get(kind, ()))


def reads(name: str, mode: Mode, field: str, kind: str = "") -> bool:
    """Whether a mode asks what a field's value is.

    Args:
      name: of the mode.
      mode: it.
      field: "section.field", or without a section.
      kind: of the model, for a mode that has one for each.
    """
    section, _, inner = field.partition(".")
    made = kind if kind not in mode.of_kind(kind) else ""  # here, of all its fields
    if not inner or section in (mode.section or name, "own", made):
        return True
    weights = section in mode.of_kind(kind) and inner == "weights"
    return weights or inner in mode.reads.get(section, ())


def _free(section: str, *fields: str) -> tuple[str, ...]:
    return tuple(f"{section}.{field}" for field in fields)


_DEFENCES = ("pixelcnn", "puvae", "magnet")
_LATENT: dict[str, tuple[str, ...]] = {"puvae": ("samples", "noise")}
_PURIFIER = {"purify": ("eps", "grades"), "squeeze": ("colours", "preset")}
_GIVEN = ("images", "input", "batch")
MODES = {
    "purify": Mode(
        purify,
        weights=("classifier", *_DEFENCES),
        reads=_LATENT | {"squeeze": ("colours", "preset")},
    ),
    "attack": Mode(attack, weights=("classifier",)),
    "evaluate": Mode(
        evaluate,
        weights=_DEFENCES,
        reads=_PURIFIER | _LATENT | {"reject": ("false_positive_rate",)},
        free=_free(
            "evaluate", "rows", "attacks", "eps_attack", "sources", "threshold", *_GIVEN
        ),
    ),
    "judge": Mode(
        judge,
        weights=("classifier", *_DEFENCES),
        reads=_PURIFIER | _LATENT | {"reject": ("false_positive_rate",)},
        free=_free(
            "judge",
            *("images", "input", "batch", "eps", "defence", "draws", "gradients"),
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
    "calibrate": Mode(
        calibrate,
        weights=("classifier", *_DEFENCES),
        reads=_LATENT | _PURIFIER | {"evaluate": ("attacks", "eps_attack", "batch")},
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
    "train": Mode(
        train,
        weights=(),
        kinds=dict.fromkeys(zoo.KINDS, ()) | {"puvae": ("classifier",)},
        free=_free("train", "tensorboard"),
    ),
    "release": Mode(
        release,
        weights=(),
        kinds={
            "pixelcnn": ("pixelcnn",),
            "classifier": ("classifier",),
            "puvae": ("classifier", "puvae"),
            "magnet": ("classifier", "magnet"),
        },
    ),
    "import": Mode(
        import_weights,
        weights=(),
        reads={"release": ("to", "note", "on_sample", "batch")},
        section="import_",  # the other is a word of Python's
    ),
    "export": Mode(
        export,
        weights=("pixelcnn", "classifier"),
        kinds={kind: (kind,) for kind in zoo.KINDS},
        reads={"purify": ("eps",)},
    ),
    "report": Mode(report, weights=(), free=("report.images",)),
}
# What used to be modes, and what to say instead. Those that reproduce the papers'
# figures have a program of their own; training and releasing take any kind of model.
_ADAPTIVE = "--mode=calibrate --config.calibrate.defences=\"('purify_adaptive',)\""
MOVED = (
    {"choose_threshold": _ADAPTIVE}
    | {
        name: f"python -m reproduction --mode={name}"
        for name in ("figures", "compare_purifiers", "gradients")
    }
    | {
        f"{mode}_{kind}": f"--mode={mode} --config.{mode}.model={kind}"
        for mode in ("train", "release")
        for kind in zoo.KINDS
    }
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
    with user_errors():
        _check_whole(name, modes[name], config)
        if not 0 <= config.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2^32 - 1: {config.seed}")
        data.find(config.dataset, config.data_dir)
        parallel.check_platform()
        parallel.warn_of_idle_gpu()
        given = jax.tree.leaves(config.to_dict())
        files.prepare(text for text in (workdir, *given) if isinstance(text, str))
        if config.compilation_cache:
            parallel.enable_cache(config.compilation_cache)
        sections = _sections(name, modes[name], config)
        run = f"{name}-{config_hash(sections)}"
        folder = workdir or f"runs/{inputs.dataset(config)}/{run}"
        started = f"{name}: {inputs.dataset(config)}, on {parallel.devices()}"
        place = Workdir(folder, sections, modes[name].free, started)
    with place.at_work(), contextlib.ExitStack() as stack:
        if not processes.is_first():  # what it says the first one says as well
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        modes[name].run(config, place)


def _check_whole(name: str, mode: Mode, config: inputs.Config) -> None:
    """Raises ValueError where a config of one's own lacks what a mode reads."""
    own = mode.section or name
    wanted = ["dataset", "seed", "own", "data_dir", "compilation_cache", own]
    kind = config[name].get("model", "") if mode.kinds and name in config else ""
    wanted += [*mode.of_kind(kind), *([kind] if kind in mode.kinds else [])]
    for section, fields in mode.reads.items():
        wanted += [section, *(f"{section}.{field}" for field in fields)]
    for path in wanted:
        inner = config
        for part in path.split("."):
            if part not in inner:
                raise ValueError(
                    f"the config has no {path}, which {name} reads: start from that of "
                    "configs/default.py"
                )
            inner = inner[part]


def _sections(name: str, mode: Mode, config: inputs.Config) -> dict:
    """The part of a config that a mode's results depend on."""
    whole = json.loads(config.to_json_best_effort())
    kept = {"mode": name, "dataset": config.dataset, "seed": config.seed}
    if inputs.is_own(config):
        kept["own"] = whole["own"]
    kind = inputs.kind(config, name) if mode.kinds else ""
    weights = mode.of_kind(kind)
    if kind:
        if kind not in weights:  # made here: all but the weights counts
            kept[kind] = {k: v for k, v in whole[kind].items() if k != "weights"}
    for section in weights:
        kept[section] = {"weights": whole[section]["weights"]}
    own = mode.section or name
    kept[own] = whole[own]
    for section, fields in mode.reads.items():
        chosen = {field: whole[section][field] for field in fields}
        kept[section] = kept.get(section, {}) | chosen
    for field in ("save_seconds", "keep", "pictures"):  # how results are written
        kept[own].pop(field, None)
    return kept


def describe(modes: Mapping[str, Mode]) -> str:
    """One line for every mode."""
    wide = max(map(len, modes))
    return "\n".join(
        f"{name.ljust(wide)}  {(mode.run.__doc__ or name).splitlines()[0]}"
        for name, mode in modes.items()
    )
