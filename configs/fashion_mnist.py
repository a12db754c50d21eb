"""Fashion-MNIST.

Purify 128 bundled images with the released model (about a minute on two cores):
  python main.py --config=configs/fashion_mnist.py --mode=purify

Train the paper's model (40 features, depth 5; needs an accelerator; 2.7 bits/dim):
  python main.py --config=configs/fashion_mnist.py:paper --mode=train \
    --config.data_dir=DATA_DIR

Train a classifier (an hour on one core; `classifier.training` has other kinds of
training), and measure its accuracy on the bundled images, clean and attacked:
  python main.py --config=configs/fashion_mnist.py --mode=train \
    --config.train.model=classifier --config.data_dir=DATA_DIR \
    --workdir=runs/fashion_mnist/resnet
  python main.py --config=configs/fashion_mnist.py --mode=attack \
    --config.classifier.weights=runs/fashion_mnist/resnet \
    --config.attack.name=fgsm --config.attack.eps=8

The paper's Table 1, every defence under every attack, on 100 images (a quarter of an
hour, most of it compilation; the ResNet behind the purifier: about 83 % under the
strongest attack at eps 8, grey-box):
  python main.py --config=configs/fashion_mnist.py --mode=evaluate \
    --config.evaluate.images=100

Train the released density model again (its first run; the card describes the later
ones, each of which starts from the one before, with their times and bits/dim):
  python main.py --config=configs/fashion_mnist.py --mode=train \
    --config.data_dir=DATA_DIR
"""

import ml_collections

from configs import default


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: "" (two CPU cores), "gpu" (one GPU), "paper", "report", "smoke"."""
    config = default.get_config()
    config.dataset = "fashion_mnist"
    config.reject.false_positive_rate = 0.01  # the thesis's
    default.thesis(config, "fashion_mnist/cnn_a")
    config.puvae.weights = "fashion_mnist/puvae"
    config.puvae.model.latents = 128
    config.magnet.weights = "fashion_mnist/magnet"
    config.pixelcnn.weights = "fashion_mnist/pixelcnn"
    config.pixelcnn.model.channels = 1
    config.classifier.weights = "fashion_mnist/resnet"
    config.classifier.model.divisor = 4
    config.release.eps_attack = (8.0, 25.0)
    config.purify.eps = 32
    config.squeeze.colours = 8
    fgsm = "fashion_mnist/resnet-adversarial_fgsm{eps}"
    config.evaluate.eps_attack = (8.0, 25.0)
    # Neither is in the paper.
    config.evaluate.attacks += ("apgd images=200", "auto_attack images=200")
    config.evaluate.rows = (  # the paper's Table 1
        "fashion_mnist/resnet",
        "fashion_mnist/vgg",
        fgsm,
        "fashion_mnist/resnet-adversarial_bim8",
        "fashion_mnist/resnet-label_smoothing",
        "fashion_mnist/resnet + squeeze",
        f"{fgsm} + squeeze",
        "fashion_mnist/resnet + purify",
        "fashion_mnist/vgg + purify",
        f"{fgsm} + purify",
        f"{fgsm} + purify_adaptive",
    )
    config.detect.classifier = "fashion_mnist/resnet"
    if variant == "paper":
        config.pixelcnn.model.features = 40
        config.pixelcnn.train.steps = 400_000
        return config
    default.small(config)
    config.pixelcnn.model.features = 32
    config = default.chosen(config, variant, "paper")
    if variant == "gpu":  # the paper's network
        config.pixelcnn.model.features, config.pixelcnn.model.depth = 40, 5
    return config
