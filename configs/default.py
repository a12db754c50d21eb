"""Every field of a configuration, once, with its unit."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The fields that every mode may read; data sets override what is theirs."""
    config = ml_collections.ConfigDict()
    # cifar10, fashion_mnist, mnist; or your own, see configs/custom.py.
    config.dataset = "cifar10"
    config.own = _own()
    # A TFDS directory with array_record sets, or one with DATASET/{train,validation,
    # test}.npz; unset: the bundled sample, where it does.
    config.data_dir = config_dict.placeholder(str)
    config.seed = 0
    # XLA's compiled programs are kept here; "" keeps none.
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
    """Data sets and pictures of your own: what is done to them."""
    own = ml_collections.ConfigDict()
    # Pixels: images are cut to the square in their middle, and that is resized to so
    # many on each side; 0: they are taken as they are.
    own.size = 0
    # Share of the images that validation and test get, each, where a data set has no
    # such split.
    own.held_out = 0.1
    return own


def _pixelcnn() -> ml_collections.ConfigDict:
    """The density model: which weights to use, and how to train new ones."""
    pixelcnn = ml_collections.ConfigDict()
    # A released model ("cifar10/pixelcnn"), or the folder of a model or training run.
    pixelcnn.weights = "cifar10/pixelcnn"
    pixelcnn.model = ml_collections.ConfigDict()
    pixelcnn.model.features = 160
    pixelcnn.model.depth = 5  # gated blocks per stream and resolution
    pixelcnn.model.resolutions = 3  # scales of the network
    pixelcnn.model.mixtures = 10
    pixelcnn.model.dropout = 0.5
    pixelcnn.model.conditionals = "independent"  # independent, joint, softmax
    pixelcnn.model.classes = 0  # 10: class-conditional
    pixelcnn.model.channels = 3  # 0: those of the training images
    pixelcnn.model.dtype = "float32"  # of the streams: float32, bfloat16

    train = pixelcnn.train = ml_collections.ConfigDict()
    train.start = ""  # like `weights`: begin from these, "" afresh
    train.batch = 48  # images per step, over all devices of all processes
    train.steps = 0  # give steps or hours
    train.hours = 0.0  # a time box, in which everything counts, compiling included
    train.schedule = "paper"  # paper, anneal
    train.learning_rate = 1e-3
    train.warmup = 200  # steps, anneal only
    train.decay = 0.999995  # per step, paper only
    train.polyak = 0.9995  # decay of the average, per step
    train.clip = 0.0  # largest gradient norm, 0: none
    train.flip = False  # mirror half of the images
    # Levels, at most, of noise on the pixels that the model is given while it learns to
    # predict clean ones.
    train.noise = 0.0
    train.on_sample = False  # train on the bundled sample: for trying the code only
    train.init_images = 100  # for the data-dependent initialisation
    train.eval_images = 1000  # of the validation images
    train.log_every = 50  # steps
    train.eval_every = 1000  # steps
    # Steps that the device takes without the host; 0: 1 on a CPU, 50 on others.
    train.steps_per_call = 0
    train.checkpoint_minutes = 5.0
    return pixelcnn


def _classifier() -> ml_collections.ConfigDict:
    """A classifier: which weights to use, and how to train new ones."""
    classifier = ml_collections.ConfigDict()
    # As for the density model; purify can do without one ("").
    classifier.weights = "cifar10/resnet"
    # normal, label_smoothing, adversarial_fgsm, adversarial_bim
    classifier.training = "normal"
    classifier.delta = 8.0  # levels, the scale of eps in adversarial training
    classifier.preset = "paper"  # paper, code: where their BIM training differs
    classifier.model = ml_collections.ConfigDict()
    classifier.model.architecture = "resnet"  # resnet, vgg, cnn
    classifier.model.variant = "paper"  # paper, code; cnn: A, B
    classifier.model.divisor = 1  # of the feature maps

    train = classifier.train = ml_collections.ConfigDict()
    train.start = ""  # like `weights`: begin from these, "" afresh
    train.batch = 128  # images per step, over all devices
    train.steps = 80_000  # give steps or hours
    train.hours = 0.0
    train.schedule = "paper"  # paper, anneal
    train.learning_rate = 0.1
    train.warmup = 200  # steps, anneal only
    train.decay = 1.0  # per step, paper only
    train.drops = (40_000, 60_000)  # steps that divide the rate by 10, paper only
    train.momentum = 0.9
    train.weight_decay = 5e-4  # times half the squares of all parameters
    train.polyak = 0.0  # decay of the average, per step; 0: none, the last weights
    train.clip = 0.0  # largest gradient norm, 0: none
    train.flip = True  # mirror half of the images
    train.crop = 0  # pixels, at most, by which images are moved
    train.on_sample = False  # train on the bundled sample: for trying the code only
    train.eval_images = 1000  # of the validation images
    train.log_every = 50  # steps
    train.eval_every = 1000  # steps
    # Steps that the device takes without the host; 0: 1 on a CPU, 50 on others.
    train.steps_per_call = 0
    train.checkpoint_minutes = 5.0
    return classifier


def _autoencoder_train() -> ml_collections.ConfigDict:
    """How PuVAE and MagNet's autoencoders are trained."""
    train = ml_collections.ConfigDict()
    train.start = ""  # like `weights`: begin from these, "" afresh
    train.batch = 64  # images per step, over all devices
    train.steps = 0  # give steps or hours
    train.hours = 1.0
    train.schedule = "anneal"  # paper, anneal
    train.learning_rate = 2e-3
    train.warmup = 100  # steps, anneal only
    train.decay = 1.0  # per step, paper only
    train.polyak = 0.99  # decay of the average, per step
    train.clip = 0.0  # largest gradient norm, 0: none
    train.on_sample = False  # train on the bundled sample: for trying the code only
    train.eval_images = 1000  # of the validation images
    train.log_every = 50  # steps
    train.eval_every = 500  # steps
    train.steps_per_call = 0  # as for the density model
    train.checkpoint_minutes = 5.0
    return train


def _puvae() -> ml_collections.ConfigDict:
    """The conditional autoencoder that purifies; it is trained for `classifier`."""
    puvae = ml_collections.ConfigDict()
    puvae.weights = "mnist/puvae"  # as for the density model
    puvae.samples = 1  # draws of the latent variables when purifying
    puvae.noise = 0.1  # of those draws, times their standard deviation
    puvae.model = ml_collections.ConfigDict()
    puvae.model.variant = "C"  # C, D
    puvae.model.latents = 32
    puvae.model.divisor = 1  # of feature maps and dense widths
    puvae.loss = ml_collections.ConfigDict()  # weights of its parts
    puvae.loss.reconstruction = 1.0  # nats per value
    puvae.loss.divergence = 1e-3  # nats
    # Much more of it and the first epochs teach to please the classifier only.
    puvae.loss.classification = 0.1  # nats
    puvae.train = _autoencoder_train()
    return puvae


def _magnet() -> ml_collections.ConfigDict:
    """MagNet's autoencoders."""
    magnet = ml_collections.ConfigDict()
    magnet.weights = "mnist/magnet"  # as for the density model
    magnet.model = ml_collections.ConfigDict()
    magnet.model.autoencoders = ("pooled", "plain")  # pooled, plain; reformer first
    magnet.model.features = 3  # feature maps
    magnet.model.copies = 4  # of each autoencoder, one of which meets an image
    magnet.noise = 0.1  # of training images 0..1, standard deviation
    magnet.diversity = 0.04  # weight of what makes the copies differ
    magnet.train = _autoencoder_train()
    return magnet


def _purify() -> ml_collections.ConfigDict:
    """Purification, the main job."""
    purify = ml_collections.ConfigDict()
    # "sample" (bundled), a split (train, validation, test), an .npz or .npy, a folder.
    purify.input = "sample"
    # Images at most; 0: all; -1: 128 of the sample or a split, all of your own.
    purify.count = -1
    purify.batch = 128  # images at a time, per device
    # What images pass, as in a row of `evaluate`: "purify", "squeeze + purify"; "auto":
    # purify_adaptive where there is a threshold, purify_graded where there are grades,
    # else purify.
    purify.defence = "auto"
    purify.eps = 16  # levels, the defence's
    # purify_graded: the bits/dim from which on an eps holds (the first from 0), that
    # eps (the largest: purify.eps), and the quality of JPEG afterwards, if any; see
    # `calibrate`, which finds some.
    purify.grades = ()
    # bits/dim below which an image is left alone (adaptive); 0: purify every image; -1:
    # the one on the density model's card.
    purify.threshold = 0.0
    # none, or an attack on the classifier (see `attack`); "auto": bim, or without a
    # classifier rand, for the sample and the splits, none for your own images.
    purify.attack = "auto"
    purify.preset = ""  # of the attack, as for `attack`
    purify.eps_attack = 8.0  # levels
    # Between writings of results; 0: after every batch, so that a run that is killed
    # loses no more than the batches that were being worked on.
    purify.save_seconds = 0.0
    # A PNG for each of your own images; all are in one .npz anyway.
    purify.pictures = True
    return purify


def _score() -> ml_collections.ConfigDict:
    """Scoring: bits/dim and p-values of clean images."""
    score = ml_collections.ConfigDict()
    score.input = "sample"  # as for purify
    score.count = 0  # images at most; 0: all
    score.batch = 200  # images at a time, per device
    return score


def _attack() -> ml_collections.ConfigDict:
    """Adversarial images of a classifier."""
    attack = ml_collections.ConfigDict()
    attack.input = "sample"  # as for purify
    attack.count = -1  # as for purify
    attack.batch = 128  # images at a time, per device
    # rand, fgsm, bim, pgd, pgd_l2, fgm, deepfool, deepfool_l2, cw, cw_l2, apgd,
    # apgd_l2, fab, fab_l2, square, square_l2, auto_attack, auto_attack_l2,
    # gaussian_blur, contrast_reduction, salt_and_pepper,
    # saliency_map, lbfgs
    attack.name = "bim"
    # Of its arguments: paper, code, strong, standard, athalye, thesis, report; "": the
    # usual one.
    attack.preset = ""
    # In the attack's norm: levels, or values for saliency_map; inf: no bound.
    attack.eps = 8.0
    attack.save_seconds = 0.0  # as for purify
    return attack


def _squeeze() -> ml_collections.ConfigDict:
    """Feature squeezing, as a defence of `evaluate`."""
    squeeze = ml_collections.ConfigDict()
    squeeze.colours = 32  # levels that stay
    squeeze.preset = "paper"  # of the median filter: paper, code
    return squeeze


def _reject() -> ml_collections.ConfigDict:
    """Detectors among the defences of `evaluate`."""
    reject = ml_collections.ConfigDict()
    # Share of clean images that may be rejected, by the scores of validation images
    # that are kept beside the detector's weights.
    reject.false_positive_rate = 0.01
    return reject


def _calibrate() -> ml_collections.ConfigDict:
    """The thresholds of defences that have one, or grades, on validation images."""
    calibrate = ml_collections.ConfigDict()
    # reject_p_value, reject_rmse, reject_magnet, by the scores of clean images; or
    # purify_adaptive or purify_graded alone, under the attacks of `evaluate` on the
    # classifier.
    calibrate.defences = ("reject_p_value", "reject_rmse", "reject_magnet")
    calibrate.input = "validation"  # as for evaluate
    calibrate.test = "test"  # images on which the rates are checked, likewise
    calibrate.images = 0  # at most, the first, of both; 0: all
    calibrate.rates = (0.001, 0.01, 0.03)  # of false positives, to be checked
    calibrate.keep = False  # keep what was found beside the weights; not grades
    # purify_graded: how many grades at most, the eps that one may have (levels), and
    # the qualities of JPEG afterwards, 0 for none.
    calibrate.grades = 3
    calibrate.eps = (8, 12, 16, 24)
    calibrate.qualities = (0, 95, 90, 85, 80, 75, 70, 60, 50)
    # Grades are of the highest mean accuracy, in which that of clean images has this
    # share; every attack of every eps has the same of the rest.
    calibrate.clean_share = 0.5
    return calibrate


def _evaluate() -> ml_collections.ConfigDict:
    """Every defence under every attack; the purifier is that of `purify`."""
    evaluate = ml_collections.ConfigDict()
    # As for purify, with labels; "auto": test, or without data_dir the sample.
    evaluate.input = "auto"
    evaluate.images = 1000  # at most, the first; 0: all
    evaluate.batch = 100  # images at a time, per device
    # A classifier's weights and the defences that an image passes, in order, of
    # squeeze, jpeg75, jpeg50, jpeg20, median3, total_variation, bit_depth3, purify,
    # purify_adaptive, purify_graded, puvae, magnet, and the detectors reject_p_value,
    # reject_rmse and reject_magnet; {eps} in the weights stands for the attack's.
    evaluate.rows = (  # the paper's Table 2, and filters beside it
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
        "cifar10/resnet + purify",
        "cifar10/vgg + purify",
        "cifar10/resnet-adversarial_fgsm8 + purify",
        "cifar10/resnet-adversarial_fgsm8 + purify_adaptive",
        "cifar10/resnet + purify_graded",
        "cifar10/resnet-adversarial_fgsm8 + purify_graded",
    )
    # Names as for `attack`; after the name: preset=, images= (at most), eps= (instead
    # of eps_attack; attacks of another norm than L-infinity are unbounded without),
    # through= (bpda, straight_through, expectation: looks through purifiers, too),
    # levels=fractional (not rounded to whole levels).
    evaluate.attacks = ("rand", "fgsm", "bim", "deepfool", "cw preset=code images=200")
    evaluate.eps_attack = (2.0, 8.0, 16.0)  # levels
    # Classifiers on which images are made besides each row's own (transfer).
    evaluate.sources = ()
    # bits/dim below which purify_adaptive leaves an image alone; -1: the one on the
    # density model's card.
    evaluate.threshold = -1.0
    return evaluate


def _judge() -> ml_collections.ConfigDict:
    """A defence of `classifier.weights` under the whole protocol of attacks."""
    judge = ml_collections.ConfigDict()
    judge.input = "auto"  # as for evaluate
    judge.images = 200  # at most, the first; 0: all
    judge.batch = 100  # images at a time, per device
    judge.defence = "purify"  # as in a row of evaluate; "": the classifier alone
    judge.eps = 8.0  # levels, L-infinity
    # whole: the protocol; glance: a tenth of its steps; "auto": a glance on the sample.
    judge.budget = "auto"
    # bpda, straight_through, expectation: the ways to look through it; (): all.
    judge.gradients = ()
    judge.draws = 10  # evaluations of a random defence, whose majority counts
    judge.threshold = -1.0  # as for evaluate
    return judge


def _sweep() -> ml_collections.ConfigDict:
    """Defences under attacks of many eps: the thesis's Tables 3 to 5."""
    sweep = ml_collections.ConfigDict()
    sweep.input = "auto"  # as for evaluate
    sweep.images = 300  # at most, the first; 0: all
    sweep.rows = ()  # as for evaluate
    # As for evaluate. The thesis leaves levels fractional, and does not say whether its
    # attacks saw the purifier.
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
    # Levels: 0.01 to 0.3 of the range 0..1.
    sweep.eps = tuple(round(2.55 * i, 2) for i in range(1, 31))
    # Images, the first, that are attacked past the detectors of some of the rows too;
    # 0: none.
    sweep.evading_images = 100
    sweep.evading_rows = ()  # as they are in `rows`
    sweep.evading_eps = (12.75, 25.5, 38.25, 51.0, 76.5)  # levels
    sweep.evading_slope = "straight_through"  # how those attacks see purifiers
    sweep.examples = 10  # images, the first, that are kept for figures
    return sweep


def thesis(config: ml_collections.ConfigDict, classifier: str) -> None:
    """A sweep over a classifier by itself and behind what the thesis is about."""
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
    """Detection by likelihood, of the images and attacks of `evaluate`."""
    detect = ml_collections.ConfigDict()
    detect.classifier = "cifar10/resnet"  # attacked, and asked what it still gets right
    # Images on which thresholds are chosen, as for purify; "auto": validation, or
    # without data_dir the sample.
    detect.calibration = "auto"
    detect.calibration_images = 1000  # at most, the first; 0: all
    # Shares of clean images that may be rejected. 0.0175: as Appendix A's classifier.
    detect.false_positive_rates = (0.01, 0.0175, 0.05)
    # Images, the first, that are attacked past the detector too (white-box), whose
    # threshold is that of one of the rates; 0: none.
    detect.evading_images = 0
    detect.evading_rate = 0.05
    detect.examples = 24  # images, the first, that are kept for figures
    return detect


def _compare_purifiers() -> ml_collections.ConfigDict:
    """L-BFGS-B beside greedy decoding, in the ball of `purify`."""
    compare = ml_collections.ConfigDict()
    compare.input = "auto"  # as for evaluate
    compare.images = 10  # the first
    compare.attack = "fgsm"  # as for `attack`
    compare.preset = ""
    compare.eps_attack = 8.0  # levels
    compare.starts = 100  # random ones, for each image
    compare.iterations = 100  # of each search, at most
    return compare


def _gradients() -> ml_collections.ConfigDict:
    """Gradients of a classifier behind the purifier of `purify`."""
    gradients = ml_collections.ConfigDict()
    gradients.input = "auto"  # as for evaluate
    gradients.images = 100  # the first
    gradients.batch = 20  # images at a time, per device
    return gradients


def _drift() -> ml_collections.ConfigDict:
    """What the density model says of clean levels in clean, attacked, own context."""
    drift = ml_collections.ConfigDict()
    drift.input = "auto"  # as for evaluate
    drift.images = 128  # the first
    drift.batch = 32  # images at a time, per device
    drift.attack = "bim"  # as for `attack`
    drift.preset = ""
    drift.eps_attack = 8.0  # levels
    drift.keep = False  # on the density model's card
    return drift


def _figures() -> ml_collections.ConfigDict:
    """Pictures, of every data set."""
    figures = ml_collections.ConfigDict()
    figures.results = "results"  # folder with rows, and arrays in a folder `arrays`
    figures.to = ""  # folder for the pictures; "": the workdir
    return figures


def _classify() -> ml_collections.ConfigDict:
    """Accuracy of a classifier."""
    classify = ml_collections.ConfigDict()
    classify.input = "sample"  # as for purify
    classify.count = 0  # images at most; 0: all
    classify.batch = 200  # images at a time, per device
    return classify


def _train() -> ml_collections.ConfigDict:
    """Training; how is in the section of the model."""
    train = ml_collections.ConfigDict()
    train.model = "pixelcnn"  # pixelcnn, classifier, puvae, magnet
    # The metrics as TensorBoard's events too, in `events/`; wants tensorboardX.
    train.tensorboard = False
    return train


def _release() -> ml_collections.ConfigDict:
    """A released model, of the finished run that its `weights` name."""
    release = ml_collections.ConfigDict()
    release.model = "pixelcnn"  # as for train
    release.to = ""  # folder
    release.note = ""  # for the card, e.g. how the run shared its machine
    release.on_sample = False  # all splits from the bundled sample: for trying the code
    release.reference = 0  # training images, the first, for p-values; 0: all
    release.batch = 200  # images at a time, per device
    # Classifiers: levels of the FGSM attacks whose accuracy goes on the card.
    release.eps_attack = (2.0, 8.0, 16.0)
    return release


def _import_() -> ml_collections.ConfigDict:
    """A released model of published weights; `release` says where to, and measures."""
    import_ = ml_collections.ConfigDict()
    import_.weights = ""  # a file: .npz, .pth or .pt of PyTorch, .ckpt of TensorFlow
    import_.count = 0  # images of each split at most, the first, to measure; 0: all
    return import_


def _export() -> ml_collections.ConfigDict:
    """What others take away; the eps of programs is that of `purify`."""
    export = ml_collections.ConfigDict()
    # Programs that run without this package: purify (purified images), score (bits/dim
    # and p-values), defence (purified images and the classifier's logits of them); or
    # weights, in the layout of Hugging Face's hub.
    export.what = "purify"
    export.to = ""  # folder
    export.platforms = ("cpu", "cuda")  # that it is for; neither has to be here
    export.batch = 0  # images at a time; 0: any number
    export.model = "pixelcnn"  # whose weights, as for train
    export.license = "apache-2.0"  # of the weights, as the hub calls it
    return export


def _sample() -> ml_collections.ConfigDict:
    """Samples of the density model."""
    sample = ml_collections.ConfigDict()
    sample.count = 64  # images
    sample.batch = 64  # images at a time, per device
    sample.label = -1  # class to draw from a class-conditional model; -1: each in turn
    return sample


def _report() -> ml_collections.ConfigDict:
    """A page of HTML of a run or of results."""
    report = ml_collections.ConfigDict()
    # The workdir of a run, or a folder of rows (*.jsonl) with arrays in a folder
    # `arrays`; what is shown is its, whatever the data set of the config is.
    report.input = "results"
    report.images = (
        12  # at most, each clean, attacked and purified, in a file's section
    )
    return report


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same path through the code in seconds, for every mode."""
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
    """For evaluate: the reproducibility report's claim 3, a ResNet and eps_defend 8."""
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
    """A density model and a schedule that two CPU cores can train in two hours."""
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
    """A density model and classifiers that one GPU trains in minutes."""
    model, train = config.pixelcnn.model, config.pixelcnn.train
    model.features, model.depth, model.dropout = 64, 2, 0.0
    model.dtype = "bfloat16"
    train.hours, train.schedule, train.batch = 0.15, "anneal", 256
    # Not clipped: with a norm of 1 far less is learnt, see docs/performance.md.
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
    """Applies the variants that every data set has; `others` are its own.

    Raises:
      ValueError: no such variant.
    """
    variants = {"": lambda config: config, "smoke": smoke, "gpu": gpu, "report": report}
    if variant not in variants:
        known = ", ".join((*filter(None, variants), *others))
        raise ValueError(f"unknown variant {variant!r}: one of {known}, or none")
    return variants[variant](config)
