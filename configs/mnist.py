"""MNIST.

The thesis's Table 3, on 20 of the bundled images and at two values of eps (two minutes
on two cores, most of it compilation):
  python main.py --config=configs/mnist.py --mode=sweep \
    --config.sweep.images=20 --config.sweep.eps="(25.5, 76.5)" \
    --config.sweep.evading_images=0

Train a PuVAE for the bundled classifier (an hour on one core), or MagNet's
autoencoders:
  python main.py --config=configs/mnist.py --mode=train \
    --config.train.model=puvae --config.data_dir=DATA_DIR --workdir=runs/mnist/puvae
  python main.py --config=configs/mnist.py --mode=train \
    --config.train.model=magnet --config.data_dir=DATA_DIR --workdir=runs/mnist/magnet

Purify 128 bundled images with the released density model:
  python main.py --config=configs/mnist.py --mode=purify
"""

import ml_collections

from configs import default


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: "" (two CPU cores), "gpu" (one GPU), "report", "smoke"."""
    config = default.get_config()
    config.dataset = "mnist"
    config.reject.false_positive_rate = 0.001  # the thesis's
    default.thesis(config, "mnist/cnn_a")
    config.puvae.weights = "mnist/puvae"
    config.magnet.weights = "mnist/magnet"
    config.pixelcnn.weights = "mnist/pixelcnn"
    config.pixelcnn.model.channels = 1
    config.classifier.weights = "mnist/cnn_a"
    config.classifier.model.architecture = "cnn"
    config.classifier.model.variant = "A"
    config.classifier.train.flip = False  # a mirrored digit is not a digit
    config.release.eps_attack = (8.0, 25.0)
    config.purify.eps = 32
    config.squeeze.colours = 8
    config.evaluate.eps_attack = (8.0, 25.0)
    config.evaluate.rows = ("mnist/cnn_a", "mnist/cnn_a + squeeze")
    config.detect.classifier = "mnist/cnn_a"
    default.small(config)
    return default.chosen(config, variant)
