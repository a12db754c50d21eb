"""Attacks as pure, batched functions, one file per family.

All have the same signature:

    adversarial, info = attack(logits_fn, variables, images, labels, key, eps=eps)

`logits_fn(variables, images) -> [B, K]` is any network of floating levels 0..255, and
`variables` any pytree; `images` are levels `[B, H, W, C]`, `labels` integers `[B]` (or
None for the predicted ones), `key` is `[B]`, one an image, where the attack is random.
eps, a number or `[B]`, bounds the distance in the attack's norm: levels, or values that
differ for L0. It may be traced, so that one program serves every eps. What comes back
is `uint8`, inside the ball and 0..255, with `Info`; where an attack failed it is the
clean image, unless `keep_failed=True`. The result for an image depends
only on that image and its key. The caller jits.

Values are checked where they can be seen: an eager call refuses labels that do not
exist, a negative eps or images that are not levels; a traced one cannot, so check first
with `check_labels`, `check_eps` and, for the network itself, `check_logits`.

`named` returns an attack by name with the settings of a paper; `ATTACKS` lists them.
"""

from pixeldefend.attacks.apgd import apgd
from pixeldefend.attacks.auto_attack import PARTS, AutoInfo, auto_attack, has_loops
from pixeldefend.attacks.carlini_wagner import cw_l2, cw_linf
from pixeldefend.attacks.corruption import (
    contrast_reduction,
    gaussian_blur,
    salt_and_pepper,
)
from pixeldefend.attacks.deepfool import deepfool
from pixeldefend.attacks.evasion import evade
from pixeldefend.attacks.fab import fab
from pixeldefend.attacks.lbfgs import lbfgs
from pixeldefend.attacks.noise import rand, uniform_noise
from pixeldefend.attacks.outcome import (
    Info,
    LogitsFn,
    check_eps,
    check_labels,
    check_logits,
    predicted,
)
from pixeldefend.attacks.presets import ATTACKS, Known, named, stops, usual
from pixeldefend.attacks.projected_gradient import bim, fgm, fgsm, pgd
from pixeldefend.attacks.rounding import cut
from pixeldefend.attacks.saliency import saliency_map
from pixeldefend.attacks.square import square

__all__ = [
    "ATTACKS",
    "AutoInfo",
    "Info",
    "Known",
    "LogitsFn",
    "PARTS",
    "apgd",
    "auto_attack",
    "bim",
    "check_eps",
    "check_labels",
    "check_logits",
    "contrast_reduction",
    "cut",
    "cw_l2",
    "cw_linf",
    "deepfool",
    "evade",
    "fab",
    "fgm",
    "fgsm",
    "gaussian_blur",
    "has_loops",
    "lbfgs",
    "named",
    "pgd",
    "predicted",
    "rand",
    "saliency_map",
    "salt_and_pepper",
    "square",
    "stops",
    "uniform_noise",
    "usual",
]
