"""PixelDefend in JAX: detect and purify adversarial images with a PixelCNN++.

Shape letters, used throughout: B batch, H W C image, K classes, M mixtures, V = 256
levels, P head outputs, F features, N reference set or positions, S a candidate window.

Images are `uint8` levels `[B, H, W, C]`; eps is in levels; log-probabilities in nats.
Functions take `(model, params, arrays...)`, options by keyword; the caller jits.
`attacks` holds the attacks, `data` the data sets; `puvae` and `magnet` purify by
autoencoders, `detection` and `reject` judge scores. `defences` knows them all by name,
`behind` is a classifier behind some of them, as an attacker sees it.
"""

from pixeldefend import attacks, defences, detection
from pixeldefend.defences import magnet, puvae, reject
from pixeldefend.defences.base import behind
from pixeldefend.defences.filters import squeeze_features
from pixeldefend.defences.graded import (
    PurifyAdaptively,
    PurifyGraded,
    adaptive_eps,
    graded_eps,
)
from pixeldefend.defences.magnet import MagNet
from pixeldefend.defences.purification import (
    Purify,
    purify,
    relax,
    window_for,
)
from pixeldefend.defences.puvae import PuVAE
from pixeldefend.density.decode import decode
from pixeldefend.density.likelihood import bits_per_dim, log_prob, sample
from pixeldefend.density.pixelcnn import PixelCNN, apply, init
from pixeldefend.density.published_weights import import_pixelcnn
from pixeldefend.detection import p_values
from pixeldefend.experiment import data
from pixeldefend.experiment.artefacts import export
from pixeldefend.experiment.hub import export_weights
from pixeldefend.experiment.judging import judge
from pixeldefend.experiment.parallel import enable_cache
from pixeldefend.experiment.serving import Purifier, Screener
from pixeldefend.experiment.zoo import load_reference, load_released
from pixeldefend.models.classifiers import CNN, VGG, ResNet, logits, logits_fn

__version__ = "0.1.0"

__all__ = [
    "CNN",
    "MagNet",
    "PixelCNN",
    "PuVAE",
    "Purifier",
    "Purify",
    "PurifyAdaptively",
    "PurifyGraded",
    "ResNet",
    "Screener",
    "VGG",
    "adaptive_eps",
    "apply",
    "attacks",
    "behind",
    "bits_per_dim",
    "data",
    "decode",
    "defences",
    "detection",
    "enable_cache",
    "export",
    "export_weights",
    "graded_eps",
    "import_pixelcnn",
    "init",
    "judge",
    "load_reference",
    "load_released",
    "log_prob",
    "logits",
    "logits_fn",
    "magnet",
    "p_values",
    "purify",
    "puvae",
    "reject",
    "relax",
    "sample",
    "squeeze_features",
    "window_for",
]
