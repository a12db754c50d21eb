"""MNIST.

No density model is released for MNIST yet. Train one (two cores: under two hours),
then give its folder to the other modes as --config.pixelcnn.weights:
  python main.py --config=configs/mnist.py --mode=train_pixelcnn \
    --config.data_dir=DATA_DIR --workdir=runs/mnist/pixelcnn
  python main.py --config=configs/mnist.py --mode=purify \
    --config.pixelcnn.weights=runs/mnist/pixelcnn
"""

import ml_collections

from configs import default


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: "" (small enough for two cores), "smoke"."""
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
    config.classifier.train.flip = False  # a mirrored digit is none
    config.release.eps_attack = (8.0, 25.0)
    config.purify.eps = 32
    config.squeeze.colours = 8
    config.evaluate.eps_attack = (8.0, 25.0)
    config.evaluate.rows = ("mnist/cnn_a", "mnist/cnn_a + squeeze")
    config.choose_threshold.classifier = "mnist/cnn_a"
    config.detect.classifier = "mnist/cnn_a"
    default.small(config)
    if variant == "smoke":
        # Shaped like MNIST's images: enough to try the code.
        config.pixelcnn.weights = "fashion_mnist/pixelcnn"
    return default.chosen(config, variant)
