"""CIFAR-10.

Purify 128 bundled images with the released model (about two minutes on two cores):
  python main.py --config=configs/cifar10.py --mode=purify

Train the paper's model (160 features, depth 5; needs accelerators; 3.0 bits/dim):
  python main.py --config=configs/cifar10.py:paper --mode=train \
    --config.data_dir=DATA_DIR

The paper's Table 2, every defence under every attack, on 100 images (most of an hour on
two cores; the adversarially trained ResNet behind purify_graded: about 80 % under the
strongest attack at eps 2 and 60 % at eps 8, grey-box):
  python main.py --config=configs/cifar10.py --mode=evaluate \
    --config.evaluate.images=100 --config.data_dir=DATA_DIR

On one GPU, in minutes (`gpu`): the density model, 64 features and depth 2 in bfloat16,
and the classifiers, within a wall-clock budget that includes compilation. Training
takes 6 x 63 F^2 ((2d + 1) 1280 + 2d 64) / 1e9 GFLOP an image for F features and depth
d, 10.3 here. One NVIDIA H100 trained `cifar10/pixelcnn-64x2` in six and a half minutes,
12 900 images/s, 106 epochs, 3.44 bits/dim, with gradient clipping (docs/performance.md;
without it, as here now, not yet measured there). A ResNet should take three minutes:
  python main.py --config=configs/cifar10.py:gpu --mode=train \
    --config.data_dir=DATA_DIR --config.pixelcnn.train.hours=0.15
  python main.py --config=configs/cifar10.py:gpu --mode=train \
    --config.train.model=classifier --config.data_dir=DATA_DIR \
    --config.classifier.train.hours=0.05
All of this in one command, within minutes of GPU time: `python -m
benchmarks.accelerator`.

Or import published weights of that size (docs/published_weights.md):
  python main.py --config=configs/cifar10.py --mode=import \
    --config.import_.weights=params_cifar.ckpt --config.release.to=FOLDER \
    --config.data_dir=DATA_DIR

Train the released model again (its first run; the card describes the second, which
starts from the first, with the times and bits/dim of both):
  python main.py --config=configs/cifar10.py --mode=train \
    --config.pixelcnn.train.hours=1.75 --config.data_dir=DATA_DIR
"""

import ml_collections

from configs import default


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: "" (two CPU cores), "gpu" (one GPU), "paper", "report", "smoke"."""
    config = default.get_config()
    config.dataset = "cifar10"
    config.reject.false_positive_rate = 0.03  # the thesis's
    default.thesis(config, "cifar10/resnet")
    config.sweep.eps = tuple(round(0.51 * i, 2) for i in range(1, 31))
    config.sweep.evading_eps = (2.55, 5.1, 7.65, 10.2, 15.3)
    config.puvae.weights = "cifar10/puvae"
    config.puvae.model.variant = "D"
    config.puvae.model.latents = 1024
    config.magnet.weights = "cifar10/magnet"
    config.magnet.model.autoencoders = ("plain",)
    config.magnet.model.features = 32
    config.pixelcnn.weights = "cifar10/pixelcnn"
    if variant == "paper":
        config.pixelcnn.train.steps = 400_000
        return config
    # By bits/dim under `cifar10/pixelcnn`, from 512 validation images: half of them are
    # below 3.55, and nine in ten are above 4.65 once attacked by BIM at eps 8.
    config.purify.grades = (
        (0.0, 8, 95),
        (4.5, 12, 75),
        (4.8, 12, 60),
        (5.2, 16, 60),
    )
    config.purify.defence = "auto + mirror"
    default.small(config)
    config.pixelcnn.model.conditionals = "joint"
    # The paper only mirrors; random shifts are worth several per cent to a ResNet.
    config.classifier.train.crop = 4
    config = default.chosen(config, variant, "paper")
    if variant == "gpu":  # the authors' ResNet-32
        config.classifier.model.variant = "code"
    return config
