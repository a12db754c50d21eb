"""A data set of your own: `--config=configs/custom.py:DATA`, see docs/own_data.md.

DATA is a folder of pictures with a folder for each class, a folder with train.npz (and
validation.npz, test.npz), an .npz with `images` and `labels`, or a folder that TFDS
prepared; NAME is the last part of its path. Four commands make a density model, a
classifier, a released model with the scores of its training images, and a table:

  python main.py --config=configs/custom.py:DATA --mode=train \
    --workdir=runs/NAME/pixelcnn
  python main.py --config=configs/custom.py:DATA --mode=train \
    --config.train.model=classifier --workdir=runs/NAME/classifier
  python main.py --config=configs/custom.py:DATA --mode=release \
    --config.release.to=released/NAME/pixelcnn
  python main.py --config=configs/custom.py:DATA --mode=evaluate

Pictures may differ in size if every command has --config.own.size=64. What two CPU
cores train in nine minutes is only a start; see docs/own_data.md for more.
"""

import pathlib

import ml_collections

from configs import default


def get_config(data: str = "") -> ml_collections.ConfigDict:
    """Models that two CPU cores train in minutes, for a first look.

    Args:
      data: path of the data set, or the name of a folder in `data_dir`.
    """
    if not data:
        raise ValueError("it needs a data set: --config=configs/custom.py:DATA")
    config = default.small(default.get_config())
    config.dataset = data
    path = pathlib.PurePath(data)
    models = f"runs/{path.stem if path.suffix == '.npz' else path.name}"
    config.pixelcnn.weights = f"{models}/pixelcnn"
    config.pixelcnn.model.channels = 0  # as the images have
    train = config.pixelcnn.train
    train.hours, train.batch, train.warmup = 0.1, 8, 20
    classifier = config.classifier.weights = f"{models}/classifier"
    config.classifier.model.variant = "code"  # 32 layers instead of 62
    config.classifier.model.divisor = 2
    train = config.classifier.train
    train.hours, train.batch, train.warmup = 0.05, 32, 20
    train.learning_rate = 0.05
    train.flip = False  # True where mirroring keeps the class
    config.puvae.weights = f"{models}/puvae"
    config.magnet.weights = f"{models}/magnet"
    for mode in ("purify", "score", "attack", "classify"):
        config[mode].input = "test"
    config.purify.batch = config.evaluate.batch = 32
    evaluate = config.evaluate
    evaluate.images = 200
    evaluate.rows = (classifier, f"{classifier} + jpeg75", f"{classifier} + purify")
    evaluate.attacks = ("fgsm", "bim", "apgd")
    evaluate.eps_attack = (8.0,)
    config.detect.classifier = classifier
    default.thesis(config, classifier)
    return config
