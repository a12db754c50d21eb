"""Attacks by name, with the arguments that a paper or its authors' code gave them.

A preset is a set of arguments, never a second implementation:
  paper: PixelDefend as it is written.
  code: as its authors' code has it. (There DeepFool leaves the predicted label; here
    all leave the true one, so that what is misclassified anyway stays as it is.)
  strong: the attack as its inventors meant it, or stronger.
  athalye: what broke PixelDefend in Athalye et al. (2018), through bpda.
  judge: as `pixeldefend.judge` has it; glance is a fraction of that, for a first look.
  thesis: foolbox 3's defaults, which the thesis on PuVAE presumably took.
  standard: as AutoAttack has it; ce, dlr and targeted name the loss of its APGD, plus
    and rand its other versions.
  report: those of foolbox 1 and 2, which the reproducibility report presumably took.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from pixeldefend.attacks.apgd import apgd
from pixeldefend.attacks.auto_attack import VERSIONS, auto_attack
from pixeldefend.attacks.carlini_wagner import cw_l2, cw_linf
from pixeldefend.attacks.corruption import (
    contrast_reduction,
    gaussian_blur,
    salt_and_pepper,
)
from pixeldefend.attacks.deepfool import deepfool
from pixeldefend.attacks.fab import fab
from pixeldefend.attacks.lbfgs import lbfgs
from pixeldefend.attacks.noise import rand
from pixeldefend.attacks.projected_gradient import bim, fgm, fgsm, pgd
from pixeldefend.attacks.saliency import saliency_map
from pixeldefend.attacks.square import square


@dataclasses.dataclass(frozen=True)
class Known:
    """An attack as configs and rows name it.

    Attributes:
      function: see `projected_gradient.fgsm` for what all of them share.
      norm: of its distance: "linf", "l2" or "l0".
      presets: options by preset, the usual one first.
      looks: whether it looks at the classifier.
      differentiates: whether it takes gradients of it.
      cut: whether eps does no more than cut what was found; see `rounding.cut`.
      bare: whether it takes the bare classifier even where images are squeezed in front
        of it, as the authors of PixelDefend had it for Carlini and Wagner's.
    """

    function: Callable
    norm: str
    presets: Mapping[str, Mapping[str, Any]]
    looks: bool = True
    differentiates: bool = True
    cut: bool = False
    bare: bool = False


# In the paper an image is attacked with a given strength, and what comes out goes on to
# the defence whether it fools the bare classifier or not.
_MADE = {"keep_failed": True}
# 100 steps at one constant; the next one is out of reach.
_ONE_CONSTANT = {
    "steps": 100,
    "initial_const": 1e-5,
    "largest_const": 2e-5,
    "const_factor": 100.0,
}
# Every strength in turn.
_THOUSAND = {"grid": 1000, "refinements": 0}
_NINE_TARGETS = _MADE | {"targets": 9, "steps": 100, "restarts": 1}
_5000_QUERIES = _MADE | {"queries": 5000, "restarts": 1}

ATTACKS: dict[str, Known] = {
    "rand": Known(
        rand, "linf", {"paper": _MADE, "code": _MADE}, looks=False, differentiates=False
    ),
    "fgsm": Known(
        fgsm,
        "linf",
        {"paper": _MADE, "code": _MADE | {"loss_labels": "predicted"}, "thesis": _MADE},
    ),
    "bim": Known(
        bim,
        "linf",
        {
            "paper": _MADE,
            "code": _MADE,
            "thesis": _MADE | {"steps": 10, "relative_step": 0.2},
        },
    ),
    "pgd": Known(
        pgd,
        "linf",
        {
            "strong": {"steps": 100, "relative_step": 0.025, "restarts": 5},
            "athalye": _MADE
            | {
                "steps": 100,
                "relative_step": 0.5 / 8,
                "random_start": False,
                "stop_early": True,
            },
            "judge": _MADE | {"steps": 200, "restarts": 5, "stop_early": True},
            "glance": _MADE | {"steps": 20, "relative_step": 0.1, "stop_early": True},
            "thesis": _MADE | {"steps": 40, "relative_step": 0.01 / 0.3},
        },
    ),
    "pgd_l2": Known(
        pgd,
        "l2",
        {
            "strong": {
                "norm": "l2",
                "steps": 100,
                "relative_step": 0.025,
                "restarts": 5,
            },
            "thesis": _MADE | {"norm": "l2", "steps": 50, "relative_step": 0.025},
        },
    ),
    "deepfool": Known(
        deepfool,
        "linf",
        {"paper": {}, "code": {"rescale": True}, "strong": {"steps": 100}},
        cut=True,
    ),
    "deepfool_l2": Known(
        deepfool, "l2", {"strong": {"norm": "l2", "steps": 100}}, cut=True
    ),
    "cw": Known(
        cw_linf,
        "linf",
        {
            "paper": _ONE_CONSTANT,
            "code": _ONE_CONSTANT,
            "strong": {
                "steps": 1000,
                "initial_const": 1e-5,
                "largest_const": 20.0,
                "const_factor": 2.0,
            },
        },
        cut=True,
        bare=True,
    ),
    "cw_l2": Known(
        cw_l2,
        "l2",
        {"strong": {"search_steps": 9, "steps": 1000, "step_size": 0.01}},
        cut=True,
        bare=True,
    ),
    "apgd": Known(
        apgd,
        "linf",
        {
            "ce": _MADE | {"loss": "ce"},
            "dlr": _MADE | {"loss": "dlr"},
            "targeted": _MADE | {"loss": "targeted_dlr", "targets": 9},
            "judge": _MADE | {"loss": ("ce", "dlr")},
            "glance": _MADE | {"loss": ("ce", "dlr"), "steps": 20},
        },
    ),
    "apgd_l2": Known(
        apgd,
        "l2",
        {
            "ce": _MADE | {"loss": "ce", "norm": "l2"},
            "dlr": _MADE | {"loss": "dlr", "norm": "l2"},
            "targeted": _MADE | {"loss": "targeted_dlr", "targets": 9, "norm": "l2"},
        },
    ),
    "fab": Known(fab, "linf", {"standard": _NINE_TARGETS}),
    "fab_l2": Known(fab, "l2", {"standard": _NINE_TARGETS | {"norm": "l2"}}),
    "square": Known(
        square,
        "linf",
        {"standard": _5000_QUERIES, "glance": _MADE | {"queries": 100}},
        differentiates=False,
    ),
    "square_l2": Known(
        square, "l2", {"standard": _5000_QUERIES | {"norm": "l2"}}, differentiates=False
    ),
    "auto_attack": Known(
        auto_attack,
        "linf",
        {name: _MADE | {"version": name} for name in VERSIONS},
    ),
    "auto_attack_l2": Known(
        auto_attack,
        "l2",
        {name: _MADE | {"version": name, "norm": "l2"} for name in VERSIONS},
    ),
    "fgm": Known(fgm, "l2", {"report": _MADE}),
    "gaussian_blur": Known(
        gaussian_blur, "l2", {"strong": {}, "report": _THOUSAND}, differentiates=False
    ),
    "contrast_reduction": Known(
        contrast_reduction,
        "l2",
        {"strong": {}, "report": _THOUSAND},
        differentiates=False,
    ),
    "salt_and_pepper": Known(
        salt_and_pepper,
        "l2",
        {"strong": {}, "report": {"grid": 100, "refinements": 0}},
        differentiates=False,
    ),
    "saliency_map": Known(
        saliency_map, "l0", {"strong": {}, "report": {"signs": "darker"}}
    ),
    "lbfgs": Known(
        lbfgs,
        "l2",
        {
            "strong": {},
            "report": {"bisections": 10, "history": 15, "tolerance": 1e-6},
        },
    ),
}


def usual(name: str, preset: str = "") -> str:
    """The preset itself, or for "" the one that an attack usually takes.

    Raises:
      ValueError: no such attack or preset; the message lists those that exist.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}: one of {', '.join(ATTACKS)}")
    presets = ATTACKS[name].presets
    if preset and preset not in presets:
        raise ValueError(
            f"{name} has no preset {preset!r}: one of {', '.join(presets)}"
        )
    return preset or next(iter(presets))


def stops(name: str, preset: str = "") -> bool:
    """Whether an attack ends at the first point that fools, as it would be returned.

    Raises:
      ValueError: as for `usual`.
    """
    options = ATTACKS[name].presets[usual(name, preset)]
    ends = (apgd, auto_attack, fab, square)
    return ATTACKS[name].function in ends or bool(options.get("stop_early"))


def named(name: str, preset: str = "") -> Callable:
    """An attack with the options of a preset; takes what `fgsm` takes.

    Raises:
      ValueError: as for `usual`.
    """
    preset = usual(name, preset)
    known = ATTACKS[name]
    return functools.partial(known.function, **known.presets[preset])
