"""PixelDefend in JAX: detect and purify adversarial images with a PixelCNN++.

Shape letters, used throughout: B batch, H W C image, K classes, M mixtures, V = 256
levels, P head outputs, F features, N reference set or positions, S a candidate window.

Images are `uint8` levels `[B, H, W, C]`; eps is in levels; log-probabilities in nats.
Functions take `(model, params, arrays...)`, options by keyword; the caller jits.
`attacks` holds the attacks, `data` the data sets; `puvae` and `magnet` purify by
autoencoders, `detection` and `reject` judge scores.
"""

from pixeldefend import attacks, data, detection, magnet, puvae, reject
from pixeldefend.checkpoint import load_reference, load_released
from pixeldefend.classifiers import CNN, VGG, ResNet, logits, logits_fn
from pixeldefend.density import bits_per_dim, log_prob, sample
from pixeldefend.detection import p_values
from pixeldefend.magnet import MagNet
from pixeldefend.pixelcnn import PixelCNN, apply, init
from pixeldefend.purification import (
    adaptive_eps,
    purify,
    purify_with_rounds,
    relax,
    width_for,
)
from pixeldefend.puvae import PuVAE
from pixeldefend.raster import decode
from pixeldefend.squeeze import squeeze_features

__version__ = "0.1.0"

__all__ = [
    "CNN",
    "MagNet",
    "PixelCNN",
    "PuVAE",
    "ResNet",
    "VGG",
    "adaptive_eps",
    "apply",
    "attacks",
    "bits_per_dim",
    "data",
    "decode",
    "detection",
    "init",
    "load_reference",
    "load_released",
    "log_prob",
    "logits",
    "logits_fn",
    "magnet",
    "p_values",
    "purify",
    "purify_with_rounds",
    "puvae",
    "reject",
    "relax",
    "sample",
    "squeeze_features",
    "width_for",
]
