"""Every field of a configuration, once, with its unit."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The fields that modes read; the configs of data sets override some."""
    config = ml_collections.ConfigDict()
    # cifar10, fashion_mnist or mnist; for your own data see configs/custom.py.
    config.dataset = "cifar10"
    config.own = _own()
    # A TFDS directory of array_record data sets, or a folder with
    # DATASET/{train,validation,test}.npz; unset: the bundled sample, where it suffices.
    config.data_dir = config_dict.placeholder(str)
    config.seed = 0  # of all randomness, from 0 to 2^32 - 1
    # Folder that caches the programs XLA compiles; "": no cache.
    config.compilation_cache = "~/.cache/pixeldefend"
    config.pixelcnn = _pixelcnn()
    config.classifier = _classifier()
    config.puvae = _puvae()
    config.magnet = _magnet()
    config.purify = _purify()
    config.score = _score()
    config.attack = _attack()
    config.squeeze = _squeeze()
    config.reject = _reject()
    config.calibrate = _calibrate()
    config.evaluate = _evaluate()
    config.judge = _judge()
    config.sweep = _sweep()
    config.detect = _detect()
    config.compare_purifiers = _compare_purifiers()
    config.gradients = _gradients()
    config.drift = _drift()
    config.figures = _figures()
    config.classify = _classify()
    config.train = _train()
    config.release = _release()
    config.import_ = _import_()
    config.export = _export()
    config.sample = _sample()
    config.report = _report()
    return config


def _own() -> ml_collections.ConfigDict:
    """Your own data sets and pictures: how they are prepared."""
    own = ml_collections.ConfigDict()
    # Pixels on a side, to which images are centre-cropped and resized; 0: images are
    # taken as they are.
    own.size = 0
    # Share of the images that is held out for each of validation and test, if the data
    # set lacks that split.
    own.held_out = 0.1
    return own


def _pixelcnn() -> ml_collections.ConfigDict:
    """The density model: which weights to use, and how to train new ones."""
    pixelcnn = ml_collections.ConfigDict()
    # A released model ("cifar10/pixelcnn"), or the folder of a model or training run.
    pixelcnn.weights = "cifar10/pixelcnn"
    pixelcnn.model = ml_collections.ConfigDict()
    pixelcnn.model.features = 160  # channels of each stream
    pixelcnn.model.depth = 5  # gated blocks per stream and resolution
    pixelcnn.model.resolutions = 3  # number of spatial resolutions
    pixelcnn.model.mixtures = 10  # logistic components per mixture
    pixelcnn.model.dropout = 0.5  # dropout rate in training
    # independent (the paper's), joint (PixelCNN++'s) or softmax.
    pixelcnn.model.conditionals = "independent"
    pixelcnn.model.classes = 0  # classes to condition on; 0: unconditional
    pixelcnn.model.channels = 3  # of the images; 0: as the training images have
    # What the streams compute in: float32 or bfloat16.
    pixelcnn.model.dtype = "float32"

    train = pixelcnn.train = ml_collections.ConfigDict()
    train.start = ""  # weights to start from, see `weights`; "": random ones
    train.batch = 48  # images per step, over all devices of all processes
    train.steps = 0  # optimiser steps; give either steps or hours
    train.hours = 0.0  # wall-clock budget in hours, compilation included
    train.schedule = "paper"  # of the learning rate: paper or anneal
    train.learning_rate = 1e-3  # at its peak
    train.warmup = 200  # steps, anneal only
    train.decay = 0.999995  # factor on the learning rate per step, paper only
    train.polyak = 0.9995  # decay of the weight average, per step
    train.clip = 0.0  # largest global gradient norm; 0: no clipping
    train.flip = False  # mirror each image with probability 1/2
    # Largest noise, in levels, on the pixels that the model conditions on; those that
    # it learns to predict stay clean.
    train.noise = 0.0
    train.on_sample = False  # train on the bundled sample, only to try the code out
    train.init_images = 100  # images for the data-dependent initialisation
    train.eval_images = 1000  # validation images to evaluate on
    train.log_every = 50  # steps between log lines
    train.eval_every = 1000  # steps between evaluations
    # Steps that the device takes per call from the host; 0: 1 on a CPU, 50 elsewhere.
    train.steps_per_call = 0
    train.checkpoint_minutes = 5.0  # minutes between checkpoints
    return pixelcnn


def _classifier() -> ml_collections.ConfigDict:
    """A classifier: which weights to use, and how to train new ones."""
    classifier = ml_collections.ConfigDict()
    # See pixelcnn.weights, or module:object; "" for purify without a classifier.
    classifier.weights = "cifar10/resnet"
    # normal, label_smoothing, adversarial_fgsm or adversarial_bim.
    classifier.training = "normal"
    classifier.delta = 8.0  # levels, the scale of eps in adversarial training
    # BIM training as in the paper, or as in its authors' code: paper or code.
    classifier.preset = "paper"
    classifier.model = ml_collections.ConfigDict()
    classifier.model.architecture = "resnet"  # resnet, vgg, cnn
    classifier.model.variant = "paper"  # paper, code; cnn: A, B
    classifier.model.divisor = 1  # divides the numbers of feature maps

    train = classifier.train = ml_collections.ConfigDict()
    train.start = ""  # weights to start from, see `weights`; "": random ones
    train.batch = 128  # images per step, over all devices
    train.steps = 80_000  # optimiser steps; give either steps or hours
    train.hours = 0.0  # wall-clock budget in hours, compilation included
    train.schedule = "paper"  # of the learning rate: paper or anneal
    train.learning_rate = 0.1  # at its peak
    train.warmup = 200  # steps, anneal only
    train.decay = 1.0  # factor on the learning rate per step, paper only
    # Steps at which the learning rate is divided by 10, paper only.
    train.drops = (40_000, 60_000)
    train.momentum = 0.9  # of SGD
    train.weight_decay = 5e-4  # factor on half the squared norm of all parameters
    # Decay of the weight average, per step; 0: no average, the last weights.
    train.polyak = 0.0
    train.clip = 0.0  # largest global gradient norm; 0: no clipping
    train.flip = True  # mirror each image with probability 1/2
    train.crop = 0  # largest random shift, in pixels
    train.on_sample = False  # train on the bundled sample, only to try the code out
    train.eval_images = 1000  # validation images to evaluate on
    train.log_every = 50  # steps between log lines
    train.eval_every = 1000  # steps between evaluations
    # Steps that the device takes per call from the host; 0: 1 on a CPU, 50 elsewhere.
    train.steps_per_call = 0
    train.checkpoint_minutes = 5.0  # minutes between checkpoints
    return classifier


def _autoencoder_train() -> ml_collections.ConfigDict:
    """How PuVAE and MagNet's autoencoders are trained."""
    train = ml_collections.ConfigDict()
    train.start = ""  # weights to start from, see `weights`; "": random ones
    train.batch = 64  # images per step, over all devices
    train.steps = 0  # optimiser steps; give either steps or hours
    train.hours = 1.0  # wall-clock budget in hours, compilation included
    train.schedule = "anneal"  # of the learning rate: paper or anneal
    train.learning_rate = 2e-3  # at its peak
    train.warmup = 100  # steps, anneal only
    train.decay = 1.0  # factor on the learning rate per step, paper only
    train.polyak = 0.99  # decay of the weight average, per step
    train.clip = 0.0  # largest global gradient norm; 0: no clipping
    train.on_sample = False  # train on the bundled sample, only to try the code out
    train.eval_images = 1000  # validation images to evaluate on
    train.log_every = 50  # steps between log lines
    train.eval_every = 500  # steps between evaluations
    # Steps that the device takes per call from the host; 0: 1 on a CPU, 50 elsewhere.
    train.steps_per_call = 0
    train.checkpoint_minutes = 5.0  # minutes between checkpoints
    return train


def _puvae() -> ml_collections.ConfigDict:
    """PuVAE, a conditional autoencoder that purifies images for `classifier`."""
    puvae = ml_collections.ConfigDict()
    puvae.weights = "mnist/puvae"  # see pixelcnn.weights
    puvae.samples = 1  # draws of the latent variables when purifying
    puvae.noise = 0.1  # factor on the standard deviation of the draws
    puvae.model = ml_collections.ConfigDict()
    puvae.model.variant = "C"  # C, D
    puvae.model.latents = 32  # latent variables
    puvae.model.divisor = 1  # divides feature maps and widths of dense layers
    puvae.loss = ml_collections.ConfigDict()
    # Weight of the reconstruction loss, which is in nats per value.
    puvae.loss.reconstruction = 1.0
    puvae.loss.divergence = 1e-3  # weight of the KL divergence, in nats
    # Weight of the classifier's cross-entropy, in nats; much more, and the first epochs
    # only learn to please the classifier.
    puvae.loss.classification = 0.1
    puvae.train = _autoencoder_train()
    return puvae


def _magnet() -> ml_collections.ConfigDict:
    """MagNet's autoencoders."""
    magnet = ml_collections.ConfigDict()
    magnet.weights = "mnist/magnet"  # see pixelcnn.weights
    magnet.model = ml_collections.ConfigDict()
    magnet.model.autoencoders = ("pooled", "plain")  # pooled, plain; reformer first
    magnet.model.features = 3  # feature maps
    magnet.model.copies = 4  # of each autoencoder; each image meets one at random
    # Standard deviation of the Gaussian noise on training images in 0..1.
    magnet.noise = 0.1
    # Weight of the copies' mean squared distance from their mean output.
    magnet.diversity = 0.04
    magnet.train = _autoencoder_train()
    return magnet


def _purify() -> ml_collections.ConfigDict:
    """Purification, the main job."""
    purify = ml_collections.ConfigDict()
    # "sample" (bundled), a split (train, validation, test), an .npz, an .npy or a
    # folder.
    purify.input = "sample"
    # Images at most; 0: all; -1: 128 of the sample or a split, all of your own.
    purify.count = -1
    purify.batch = 128  # images at a time, per device
    # Defences in order, such as "purify" or "squeeze + auto"; "auto": purify_adaptive
    # if there is a threshold, purify_graded if there are grades, else purify.
    purify.defence = "auto"
    purify.eps = 16  # levels, the L-infinity radius within which images are purified
    # For purify_graded, as --mode=calibrate finds them: (bits/dim, eps) or (bits/dim,
    # eps, JPEG quality), each applying from its bits/dim on; the first starts at 0, and
    # the largest eps, in levels, is purify.eps.
    purify.grades = ()
    # bits/dim below which purify_adaptive leaves an image alone; 0: purify every image;
    # -1: the threshold on the density model's card.
    purify.threshold = 0.0
    # none, or an attack on the classifier (see attack.name); "auto": bim (rand without
    # a classifier) on the sample and the splits, none on your own images.
    purify.attack = "auto"
    purify.preset = ""  # of the attack, see attack.preset
    purify.eps_attack = 8.0  # levels
    # Seconds between writes of results; 0: after every batch, so that a killed run
    # loses only the batches in progress.
    purify.save_seconds = 0.0
    # Also write a PNG of each of your own images; one .npz has them all anyway.
    purify.pictures = True
    return purify


def _score() -> ml_collections.ConfigDict:
    """Scoring: bits/dim and p-values of clean images."""
    score = ml_collections.ConfigDict()
    score.input = "sample"  # see purify.input
    score.count = 0  # images at most; 0: all
    score.batch = 200  # images at a time, per device
    return score


def _attack() -> ml_collections.ConfigDict:
    """Adversarial images for a classifier."""
    attack = ml_collections.ConfigDict()
    attack.input = "sample"  # see purify.input
    # Images at most; 0: all; -1: 128 of the sample or a split, all of your own.
    attack.count = -1
    attack.batch = 128  # images at a time, per device
    # rand, fgsm, bim, pgd, pgd_l2, fgm, deepfool, deepfool_l2, cw, cw_l2, apgd,
    # apgd_l2, fab, fab_l2, square, square_l2, auto_attack, auto_attack_l2,
    # gaussian_blur, contrast_reduction, salt_and_pepper,
    # saliency_map, lbfgs
    attack.name = "bim"
    # Settings of the attack: paper, code, strong, standard, athalye, thesis or report;
    # "": the attack's default.
    attack.preset = ""
    # Radius in the attack's norm: levels, or for saliency_map the number of values
    # changed; inf: no bound.
    attack.eps = 8.0
    # Seconds between writes of results; 0: after every batch.
    attack.save_seconds = 0.0
    return attack


def _squeeze() -> ml_collections.ConfigDict:
    """Feature squeezing, as a defence of `evaluate`."""
    squeeze = ml_collections.ConfigDict()
    squeeze.colours = 32  # levels left per channel
    squeeze.preset = "paper"  # of the median filter: paper or code
    return squeeze


def _reject() -> ml_collections.ConfigDict:
    """Detectors among the defences of `evaluate`."""
    reject = ml_collections.ConfigDict()
    # Share of clean images that detectors may reject, by the validation scores stored
    # with their weights.
    reject.false_positive_rate = 0.01
    return reject


def _calibrate() -> ml_collections.ConfigDict:
    """Thresholds of detectors and purify_adaptive, or grades of purify_graded."""
    calibrate = ml_collections.ConfigDict()
    # reject_p_value, reject_rmse, reject_magnet, on clean images; or purify_adaptive or
    # purify_graded alone, on clean images and those of evaluate.attacks on the
    # classifier.
    calibrate.defences = ("reject_p_value", "reject_rmse", "reject_magnet")
    calibrate.input = "validation"  # images to choose on, see evaluate.input
    calibrate.test = "test"  # images to check the rates on, see evaluate.input
    calibrate.images = 0  # the first N images of each at most; 0: all
    calibrate.rates = (0.001, 0.01, 0.03)  # false-positive rates to check
    calibrate.keep = False  # store thresholds with the weights; grades never are
    calibrate.grades = 3  # most grades that purify_graded may have
    calibrate.eps = (8, 12, 16, 24)  # levels, candidates for a grade of purify_graded
    # Candidates for the JPEG quality of a grade, 1 to 100; 0: no JPEG.
    calibrate.qualities = (0, 95, 90, 85, 80, 75, 70, 60, 50)
    # Weight of clean accuracy in the mean that grades maximise, from 0 to 1; every
    # attack at every eps gets an equal part of the rest.
    calibrate.clean_share = 0.5
    return calibrate


def _evaluate() -> ml_collections.ConfigDict:
    """Every defence under every attack; purifiers are set in `purify`."""
    evaluate = ml_collections.ConfigDict()
    # See purify.input, with labels; "auto": test, or the sample without data_dir.
    evaluate.input = "auto"
    evaluate.images = 1000  # the first N images at most; 0: all
    evaluate.batch = 100  # images at a time, per device
    # A classifier's weights, then " + " and each defence that an image passes, in
    # order: squeeze, jpeg75, jpeg50, jpeg20, median3, total_variation, bit_depth3,
    # mirror, purify, purify_adaptive, purify_graded, puvae, magnet, or the detectors
    # reject_p_value, reject_rmse, reject_magnet; {eps} in the weights stands for that
    # of the attack; by default the paper's Table 2 and some filters.
    evaluate.rows = (
        "cifar10/resnet",
        "cifar10/vgg",
        "cifar10/resnet-adversarial_fgsm8",
        "cifar10/resnet-adversarial_bim8",
        "cifar10/resnet-label_smoothing",
        "cifar10/resnet + squeeze",
        "cifar10/resnet-adversarial_fgsm8 + squeeze",
        "cifar10/resnet + bit_depth3",
        "cifar10/resnet + median3",
        "cifar10/resnet + total_variation",
        "cifar10/resnet + jpeg75",
        "cifar10/resnet + jpeg50",
        "cifar10/resnet + jpeg20",
        "cifar10/resnet-adversarial_fgsm8 + jpeg75",
        "cifar10/resnet-adversarial_fgsm8 + jpeg50",
        "cifar10/resnet + mirror",
        "cifar10/resnet + jpeg75 + mirror",
        "cifar10/resnet + jpeg50 + mirror",
        "cifar10/resnet-adversarial_fgsm8 + jpeg75 + mirror",
        "cifar10/resnet-adversarial_fgsm8 + jpeg50 + mirror",
        "cifar10/resnet + purify",
        "cifar10/vgg + purify",
        "cifar10/resnet-adversarial_fgsm8 + purify",
        "cifar10/resnet-adversarial_fgsm8 + purify_adaptive",
        "cifar10/resnet + purify_graded",
        "cifar10/resnet-adversarial_fgsm8 + purify_graded",
        "cifar10/resnet + purify + mirror",
        "cifar10/resnet + purify_graded + mirror",
        "cifar10/resnet-adversarial_fgsm8 + purify_graded + mirror",
    )
    # Names as in attack.name, each optionally followed by preset=, images= (at most),
    # eps= (instead of eps_attack; without it attacks in norms other than L-infinity are
    # unbounded), through= (bpda, straight_through or expectation: attacks the purifiers
    # as well), levels=fractional (no rounding to whole levels).
    evaluate.attacks = ("rand", "fgsm", "bim", "deepfool", "cw preset=code images=200")
    evaluate.eps_attack = (2.0, 8.0, 16.0)  # levels
    # Classifiers to transfer attacks from, besides each row's own.
    evaluate.sources = ()
    # bits/dim below which purify_adaptive leaves an image alone; -1: the threshold on
    # the density model's card.
    evaluate.threshold = -1.0
    return evaluate


def _judge() -> ml_collections.ConfigDict:
    """A defence of `classifier.weights` under the whole protocol of attacks."""
    judge = ml_collections.ConfigDict()
    judge.input = "auto"  # see evaluate.input
    judge.images = 200  # the first N images at most; 0: all
    judge.batch = 100  # images at a time, per device
    # Defences in order, such as "squeeze + purify"; "": the classifier alone.
    judge.defence = "purify"
    judge.eps = 8.0  # levels, L-infinity
    # whole: the full protocol; glance: a tenth of the steps; "auto": a glance on the
    # sample, else whole.
    judge.budget = "auto"
    # Gradients used to attack through the defence: bpda, straight_through, expectation;
    # (): all that it has.
    judge.gradients = ()
    judge.draws = 10  # evaluations of a random defence, decided by majority vote
    # bits/dim below which purify_adaptive leaves an image alone; -1: the threshold on
    # the density model's card.
    judge.threshold = -1.0
    return judge


def _sweep() -> ml_collections.ConfigDict:
    """Defences under attacks at many eps: the thesis's Tables 3 to 5."""
    sweep = ml_collections.ConfigDict()
    sweep.input = "auto"  # see evaluate.input
    sweep.images = 300  # the first N images at most; 0: all
    sweep.rows = ()  # see evaluate.rows
    # See evaluate.attacks. The thesis leaves levels fractional, and does not say
    # whether its attacks saw the purifier.
    sweep.attacks = (
        "fgsm preset=thesis levels=fractional",
        "bim preset=thesis levels=fractional",
        "pgd preset=thesis levels=fractional",
        "fgsm preset=thesis images=100",
        "bim preset=thesis images=100",
        "pgd preset=thesis images=100",
        "fgsm preset=thesis levels=fractional through=straight_through images=100",
        "bim preset=thesis levels=fractional through=straight_through images=100",
        "pgd preset=thesis levels=fractional through=straight_through images=100",
    )
    # Levels; by default 0.01 to 0.3 of the range 0..1.
    sweep.eps = tuple(round(2.55 * i, 2) for i in range(1, 31))
    # Attack the first N images so that they evade detectors as well; 0: none.
    sweep.evading_images = 100
    sweep.evading_rows = ()  # those of sweep.rows whose detectors are to be evaded
    sweep.evading_eps = (12.75, 25.5, 38.25, 51.0, 76.5)  # levels
    # Gradient through purifiers in those attacks: bpda, straight_through or
    # expectation.
    sweep.evading_slope = "straight_through"
    sweep.examples = 10  # keep the first N images for figures
    return sweep


def thesis(config: ml_collections.ConfigDict, classifier: str) -> None:
    """A sweep over a classifier, undefended and behind the thesis's defences."""
    config.sweep.rows = (
        classifier,
        f"{classifier} + puvae",
        f"{classifier} + reject_rmse + puvae",
        f"{classifier} + magnet",
        f"{classifier} + reject_magnet + magnet",
        f"{classifier} + reject_p_value + puvae",
    )
    config.sweep.evading_rows = config.sweep.rows[2::2]


def _detect() -> ml_collections.ConfigDict:
    """Detection by likelihood, on the images and attacks of `evaluate`."""
    detect = ml_collections.ConfigDict()
    detect.classifier = "cifar10/resnet"  # weights of the classifier under attack
    # Images to choose thresholds on, see purify.input; "auto": validation, or the
    # sample without data_dir.
    detect.calibration = "auto"
    detect.calibration_images = 1000  # the first N images at most; 0: all
    # Shares of clean images that may be rejected; 0.0175 is that of Appendix A.
    detect.false_positive_rates = (0.01, 0.0175, 0.05)
    # Attack the first N images so that they evade the detector as well (white-box); 0:
    # none.
    detect.evading_images = 0
    # The one of false_positive_rates that sets the evaded detector's threshold.
    detect.evading_rate = 0.05
    detect.examples = 24  # keep the first N images for figures
    return detect


def _compare_purifiers() -> ml_collections.ConfigDict:
    """L-BFGS-B compared with greedy decoding, within purify.eps."""
    compare = ml_collections.ConfigDict()
    compare.input = "auto"  # see evaluate.input
    compare.images = 10  # the first N images
    compare.attack = "fgsm"  # see attack.name
    compare.preset = ""  # see attack.preset
    compare.eps_attack = 8.0  # levels
    compare.starts = 100  # random starts per image
    compare.iterations = 100  # at most, of L-BFGS-B from each start
    return compare


def _gradients() -> ml_collections.ConfigDict:
    """Gradients of a classifier behind the purifier that `purify` sets."""
    gradients = ml_collections.ConfigDict()
    gradients.input = "auto"  # see evaluate.input
    gradients.images = 100  # the first N images
    gradients.batch = 20  # images at a time, per device
    return gradients


def _drift() -> ml_collections.ConfigDict:
    """Bits of the clean levels, given a clean, attacked or purified context."""
    drift = ml_collections.ConfigDict()
    drift.input = "auto"  # see evaluate.input
    drift.images = 128  # the first N images
    drift.batch = 32  # images at a time, per device
    drift.attack = "bim"  # see attack.name
    drift.preset = ""  # see attack.preset
    drift.eps_attack = 8.0  # levels
    drift.keep = False  # also write the result to the density model's card
    return drift


def _figures() -> ml_collections.ConfigDict:
    """Figures of all data sets."""
    figures = ml_collections.ConfigDict()
    figures.results = "results"  # folder of rows, with arrays in its folder `arrays`
    figures.to = ""  # folder for the figures; "": the workdir
    return figures


def _classify() -> ml_collections.ConfigDict:
    """Accuracy of a classifier."""
    classify = ml_collections.ConfigDict()
    classify.input = "sample"  # see purify.input
    classify.count = 0  # images at most; 0: all
    classify.batch = 200  # images at a time, per device
    return classify


def _train() -> ml_collections.ConfigDict:
    """Training; each model's section has its own settings."""
    train = ml_collections.ConfigDict()
    train.model = "pixelcnn"  # pixelcnn, classifier, puvae or magnet
    # Also write the metrics as TensorBoard events, in `events/`; needs tensorboardX.
    train.tensorboard = False
    return train


def _release() -> ml_collections.ConfigDict:
    """A released model, from the finished run that the model's `weights` name."""
    release = ml_collections.ConfigDict()
    release.model = "pixelcnn"  # pixelcnn, classifier, puvae or magnet
    release.to = ""  # folder to write the model to
    release.note = ""  # for the card, e.g. how the run shared its machine
    # Take every split from the bundled sample, only to try the code out.
    release.on_sample = False
    # Score the first N training images, as the reference of p-values; 0: all.
    release.reference = 0
    release.batch = 200  # images at a time, per device
    # Classifiers: eps, in levels, of the FGSM attacks on the card.
    release.eps_attack = (2.0, 8.0, 16.0)
    return release


def _import_() -> ml_collections.ConfigDict:
    """A released model from published weights; release.to is where it goes."""
    import_ = ml_collections.ConfigDict()
    import_.weights = ""  # a file: .npz, PyTorch's .pth or .pt, TensorFlow's .ckpt
    # Measure bits/dim on the first N images of each split at most; 0: all.
    import_.count = 0
    return import_


def _export() -> ml_collections.ConfigDict:
    """Programs or weights for use elsewhere; programs purify within purify.eps."""
    export = ml_collections.ConfigDict()
    # A program that runs without this package: purify (purified images), score
    # (bits/dim and p-values) or defence (purified images and the classifier's logits of
    # them); or weights, in the layout of the Hugging Face Hub.
    export.what = "purify"
    export.to = ""  # folder to write to
    # Platforms that the program runs on; this machine needs none of them.
    export.platforms = ("cpu", "cuda")
    export.batch = 0  # images per call of the program; 0: any number
    # Whose weights to export: pixelcnn, classifier, puvae or magnet.
    export.model = "pixelcnn"
    # Of the weights, by its identifier on the Hugging Face Hub.
    export.license = "apache-2.0"
    return export


def _sample() -> ml_collections.ConfigDict:
    """Samples from the density model."""
    sample = ml_collections.ConfigDict()
    sample.count = 64  # images
    sample.batch = 64  # images at a time, per device
    # Class to sample from a class-conditional model; -1: each class in turn.
    sample.label = -1
    return sample


def _report() -> ml_collections.ConfigDict:
    """An HTML page of a run or of results."""
    report = ml_collections.ConfigDict()
    # The workdir of a run, or a folder of rows (*.jsonl) with arrays in its folder
    # `arrays`, of any data set.
    report.input = "results"
    # Images at most, each shown clean, attacked and purified, in a file's section.
    report.images = 12
    return report


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same code paths in seconds, for every mode."""
    config.pixelcnn.model.features = 4
    config.pixelcnn.train.on_sample = True
    config.pixelcnn.model.depth = 1
    config.pixelcnn.model.mixtures = 2
    train = config.pixelcnn.train
    train.steps, train.hours, train.batch = 8, 0.0, 8
    train.init_images, train.eval_images = 8, 16
    train.log_every, train.eval_every, train.checkpoint_minutes = 2, 4, 0.0
    config.classifier.model.divisor = 16
    if config.classifier.model.architecture == "resnet":  # it takes long to compile
        config.classifier.model.architecture = "vgg"
        config.classifier.weights = f"{config.dataset}/vgg"
    train = config.classifier.train
    train.on_sample, train.eval_images = True, 16
    train.steps, train.hours, train.batch = 8, 0.0, 8
    train.log_every, train.eval_every, train.checkpoint_minutes = 2, 4, 0.0
    config.puvae.model.divisor = 32
    for section in (config.puvae, config.magnet):
        train = section.train
        train.on_sample, train.eval_images = True, 16
        train.steps, train.hours, train.batch = 8, 0.0, 8
        train.log_every, train.eval_every, train.checkpoint_minutes = 2, 4, 0.0
    config.magnet.model.copies = 2
    config.purify.count = config.purify.batch = 4
    config.sample.count = config.sample.batch = 4
    config.score.count = config.score.batch = 8
    config.attack.count = config.attack.batch = 8
    config.classify.count = config.classify.batch = 64
    evaluate, network = config.evaluate, config.classifier.weights
    evaluate.images, evaluate.batch, evaluate.threshold = 4, 4, 3.0
    evaluate.attacks = ("rand", "bim", "cw preset=code images=2")
    evaluate.rows = (network, f"{network} + squeeze", f"{network} + purify_adaptive")
    evaluate.eps_attack = (8.0,)
    config.drift.images = config.drift.batch = 4
    sweep = config.sweep
    sweep.images, sweep.eps, sweep.evading_images = 4, (25.5, 76.5), 2
    sweep.evading_rows = sweep.rows[2:3]
    sweep.examples = 2
    sweep.attacks = (
        "fgsm preset=thesis levels=fractional",
        "bim preset=thesis levels=fractional through=straight_through images=2",
    )
    sweep.evading_eps = (25.5,)
    calibrate = config.calibrate
    calibrate.input = calibrate.test = "sample"
    calibrate.images, calibrate.rates = 16, (0.25,)
    calibrate.defences = ("reject_rmse", "reject_magnet")
    config.detect.classifier = network
    config.detect.calibration_images, config.detect.examples = 8, 2
    config.detect.evading_images = 2
    compare = config.compare_purifiers
    compare.images, compare.starts, compare.iterations = 2, 3, 2
    config.gradients.images = config.gradients.batch = 4
    config.release.on_sample, config.release.batch = True, 64
    config.release.to = "runs/smoke/pixelcnn"
    config.import_.count = 8
    config.export.to = "runs/smoke/export"
    return config


def report(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The reproducibility report's claim 3, for evaluate: a ResNet, purify.eps 8."""
    resnet = f"{config.dataset}/resnet"
    config.purify.eps = 8
    evaluate = config.evaluate
    evaluate.images = 100
    evaluate.rows = (resnet, f"{resnet} + purify")
    evaluate.eps_attack = (8.0,)
    # As long as 8 levels in every value.
    length = 8 * (32 * 32 * 3 if config.dataset == "cifar10" else 28 * 28) ** 0.5
    evaluate.attacks = (
        "fgsm",
        "bim",
        "deepfool",
        "cw preset=code",
        f"fgm preset=report eps={length:.0f}",
        "gaussian_blur preset=report",
        "contrast_reduction preset=report",
        "salt_and_pepper preset=report",
        "saliency_map preset=report",
        "lbfgs preset=report images=20",
    )
    return config


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A density model and a schedule that train in two hours on two CPU cores."""
    model, train = config.pixelcnn.model, config.pixelcnn.train
    model.features, model.depth, model.dropout = 24, 1, 0.0
    train.hours, train.schedule, train.batch = 1.8, "anneal", 32
    train.learning_rate, train.clip, train.polyak = 3e-3, 1.0, 0.995
    config.puvae.model.divisor = 4
    # The classifier: an hour on one core.
    train = config.classifier.train
    train.steps, train.hours, train.schedule = 0, 1.0, "anneal"
    train.polyak = 0.998
    return config


def gpu(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A density model and classifiers that train in minutes on one GPU."""
    model, train = config.pixelcnn.model, config.pixelcnn.train
    model.features, model.depth, model.dropout = 64, 2, 0.0
    model.dtype = "bfloat16"
    train.hours, train.schedule, train.batch = 0.15, "anneal", 256
    # Not clipped: with a norm of 1 it learns far less, see docs/performance.md.
    train.learning_rate, train.warmup, train.clip = 2e-3, 300, 0.0
    train.polyak, train.flip = 0.999, config.dataset == "cifar10"
    train.log_every = 200
    train = config.classifier.train
    train.steps, train.hours, train.schedule = 0, 0.05, "anneal"
    train.batch, train.learning_rate, train.warmup = 256, 0.2, 400
    train.polyak = 0.999
    train.log_every = 200
    return config


def chosen(
    config: ml_collections.ConfigDict, variant: str, *others: str
) -> ml_collections.ConfigDict:
    """Applies a variant that every data set has; `others` are the data set's own.

    Raises:
      ValueError: there is no such variant.
    """
    variants = {"": lambda config: config, "smoke": smoke, "gpu": gpu, "report": report}
    if variant not in variants:
        known = ", ".join((*filter(None, variants), *others))
        raise ValueError(f"unknown variant {variant!r}: one of {known}, or none")
    return variants[variant](config)
