"""Tables of what is released and of how fast it is: from cards and benchmarks."""

import re
from collections.abc import Callable

from pixeldefend.experiment import published, report
from pixeldefend.experiment.rows import WORST
from reproduction import measured
from reproduction.measured import interval, ratio, table, told

_DENSITY_MODELS = ("fashion_mnist/pixelcnn", "cifar10/pixelcnn", "mnist/pixelcnn")
_CLASSIFIERS = """
    fashion_mnist/resnet fashion_mnist/resnet-label_smoothing
    fashion_mnist/resnet-adversarial_fgsm8 fashion_mnist/resnet-adversarial_fgsm25
    fashion_mnist/resnet-adversarial_bim8 fashion_mnist/vgg fashion_mnist/cnn_a
    mnist/cnn_a
    cifar10/resnet cifar10/resnet-label_smoothing
    cifar10/resnet-adversarial_fgsm8
    cifar10/resnet-adversarial_bim8 cifar10/vgg
""".split()
_ARMS = {  # density models as purifiers; by name, or by their training
    "cifar10/pixelcnn": "24 x 1, `cifar10/pixelcnn`, a CPU",
    "cifar10-pixelcnn-24x1": "24 x 1, mirrored images",
    "cifar10-pixelcnn-24x1-softmax": "the same, softmax conditionals",
    "cifar10-pixelcnn-24x1-noise": "the same, given noise of up to 16 levels",
    "cifar10/pixelcnn-64x2": "64 x 2, `cifar10/pixelcnn-64x2`",
}
_AUTOENCODERS = (
    *("mnist/puvae", "mnist/magnet"),
    *("fashion_mnist/puvae", "fashion_mnist/magnet"),
)


def density_models() -> str:
    """The released density models, from their cards."""
    cards = [*map(measured.card, _DENSITY_MODELS)]
    columns = {
        "model": "`{name}`",
        "network": (
            "{model[features]} features, depth {model[depth]}, "
            "{millions:.2f} M parameters"
        ),
        "conditionals": "{model[conditionals]}",
        "trained on": "{seen:,} images, {hours:.1f} h",
        told("test bits/dim (n = {test[n]:,})", cards[0]): "{test[bits]}",
    }
    return table(cards, columns)


def _attacked(card: dict) -> dict[str, dict]:
    """A classifier's figures under attack, by such a name as "fgsm8"."""
    figures = card["figures"]["test"]
    return {key: found for key, found in figures.items() if key != "clean"}


def _under_fgsm(card: dict) -> str:
    return ", ".join(
        told(f"eps {key[4:]}: {{accuracy:.1%}}", found)
        for key, found in _attacked(card).items()
        if key.startswith("fgsm")
    )


def _under_every_attack(card: dict) -> str:
    return "; ".join(
        re.sub(r"(\D+)(\d+)", lambda m: f"{m[1].upper()} {m[2]}: ", key)
        + interval(found)
        for key, found in _attacked(card).items()
    )


def classifiers() -> str:
    """The released classifiers in short, from their cards."""
    columns = {
        "classifier": "`{name}`",
        "network": "{network}",
        "training": "{training_kind}",
        "test accuracy": "{test[clean][interval]}",
        "under FGSM": _under_fgsm,
    }
    return table(map(measured.card, _CLASSIFIERS), columns)


def classifiers_whole() -> str:
    """All that the cards say of the released classifiers."""
    columns = {
        "classifier": "`{name}`",
        "network, parameters": "{network}, {size:,}",
        "training, images seen, hours of one core": (
            "{training_kind}; {seen:,}; {hours:.1f}"
        ),
        "clean": "{test[clean][interval]}",
        "attacked": _under_every_attack,
    }
    return table(map(measured.card, _CLASSIFIERS), columns)


def autoencoders() -> str:
    """The released PuVAEs and MagNets, from their cards."""

    def network(card: dict) -> str:
        model = card["model"]
        if card["kind"] == "puvae":
            text = f"{model['variant']}, {model['latents']} latents"
        else:
            text = f"{' and '.join(model['autoencoders'])}, {model['copies']} copies"
        divisor = model.get("divisor", 1)
        return text + (f", divided by {divisor}" if divisor > 1 else "")

    def trained(card: dict) -> str:
        theirs = published.EPOCHS[card["kind"], card["dataset"]]
        return told(f"{{epochs:.1f}} epochs ({theirs}), {{hours:.1f}} h", card)

    columns = {
        "model": "`{name}`",
        "network": network,
        "trained on": trained,
        "clean images right behind it": "{test[interval]}, `{test[classifier]}`",
        "RMSE, 0 to 1": "{test[rmse_of_one]:.3f}",
    }
    return table(map(measured.card, _AUTOENCODERS), columns)


def speed() -> str:
    """Purification beside a forward pass, from `benchmarks/purify.py`."""
    grey, colour = [28, 28, 1], [32, 32, 3]
    # Device, its name; features, batch and image.
    cpu, gpu = ("cpu", "2 cores"), ("NVIDIA H100 80GB HBM3", "one H100")
    shown = [
        *((*cpu, 24, 128, grey), (*cpu, 40, 128, grey), (*cpu, 40, 32, grey)),
        *((*cpu, 160, batch, colour) for batch in (32, 8, 1)),
        (*gpu, 24, 512, colour),
        *((*gpu, 64, batch, colour) for batch in (128, 512, 2048)),
    ]
    rows = []
    for device, name, features, batch, image in shown:
        rows += [
            row | {"device": name}
            for row in measured.rows("speed", device=device, images=[batch, *image])
            if row["model"]["features"] == features
        ]
    columns = {
        "device": "{device}",
        "features": "{model[features]}",
        "depth": "{model[depth]}",
        "image": "{images[1]} x {images[2]} x {images[3]}",
        "batch": "{images[0]}",
        "r (median, lowest to highest)": ratio("ratio_to_forward", ".2f"),
        "naive": lambda row: (
            f"{row['ratio_naive']:.0f} x" if row.get("ratio_naive") else "-"
        ),
        # Three digits, and no exponent.
        "images/s": lambda row: f"{float(format(row['images_per_second'], '.3g')):g}",
    }
    return table(rows, columns)


def attacks_beside_foolbox() -> str:
    """From `benchmarks/attacks.py`."""

    def pair(what: str) -> str:
        return f"{{ours_{what}:.3g}}, {{foolbox_{what}:.3g}}"

    columns = {
        "classifier": lambda row: row["of"].replace("`random`", "a small CNN"),
        "attack": lambda row: row["attack"].upper().replace("_", "-"),
        "success, ours and foolbox's": pair("success"),
        "median distance, levels": pair("median_distance"),
        "seconds": pair("seconds"),
        "foolbox / ours": ratio("ratio", ".2f"),
    }
    rows = [
        found | {"attack": name, "of": f"`{run['weights']}`"}
        for run in measured.rows("attacks")
        for name, found in run.items()
        if isinstance(found, dict)
    ]
    return table(rows, columns)


def _percent(field: str, digits: int = 1) -> Callable[[dict], str]:
    """A column of a share, without the sign."""
    return lambda row: f"{100 * row[field]:.{digits}f}"


def autoattack() -> str:
    """From `benchmarks/autoattack.py`."""

    def points(row: dict) -> str:
        return f"{100 * (row['ours'] - row['public']):+.1f}"

    def times(row: dict) -> str:
        return f"**{row['public_seconds'] / row['seconds']:.1f}**"

    def unrounded(row: dict) -> str:
        name = "public_unrounded"  # which older rows have not
        return _percent(name)(row) if name in row else ""

    columns = {
        "classifier": "`{classifier}`",
        "eps": "{eps:g}",
        "part": "{component}",
        "n": "{n}",
        "ours": _percent("ours"),
        "public": _percent("public"),
        "points": points,
        "public, unrounded": unrounded,
        "fooled by ours alone, by the public one alone": (
            "{only_ours_fooled}, {only_public_fooled}"
        ),
        "seconds, ours and public": "{seconds:.0f}, {public_seconds:.0f}",
        "public / ours": times,
    }
    return table(measured.rows("autoattack"), columns)


def frameworks() -> str:
    """From `benchmarks/frameworks.py`."""
    columns = {
        "attack of": "{library}",
        "classifier": "`{classifier}` + purify",
        "eps": "{eps}",
        "n": "{n}",
        "clean": _percent("clean"),
        "attacked": _percent("attacked"),
        "images judged as ours": _percent("same_guess_as_ours"),
        "levels as ours": _percent("same_levels_as_ours", digits=2),
    }
    return table(measured.rows("frameworks"), columns)


def purifier_speed() -> str:
    """From `benchmarks/purifiers.py`."""
    columns = {
        "data set": "{dataset}",
        "batch": "{batch}",
        "purifier": "{purifier}",
        "images/s": "{images_per_second:g}",
        "times PixelDefend": lambda row: (
            "1"
            if row["purifier"] == "pixeldefend"
            else told(ratio("times_pixeldefend", "g"), row)
        ),
    }
    rows = [
        run
        | run[name]
        | {"purifier": name, "times_pixeldefend_range": run[name]["range"]}
        for run in measured.rows("purifiers_speed")
        for name in ("pixeldefend", "puvae", "magnet")
    ]
    return table(rows, columns)


def networks(name: str) -> str:
    """From `benchmarks/networks.py`."""
    rows = measured.rows(name)
    sizes = sorted({row["eps_attack"] for row in rows[0]["accuracies"]} - {0})
    (batch,) = {row["speed"]["batch"] for row in rows}

    def purified(eps: float) -> Callable[[dict], str]:
        wanted = {"defence": "purify", "eps_attack": eps}

        def cell(row: dict) -> str:
            cells = [one for one in row["accuracies"] if wanted.items() <= one.items()]
            return told("{interval}, n {n}", min(cells, key=lambda c: c["accuracy"]))

        return cell

    columns = {
        "network": "{network}, {millions:.2f} M parameters",
        "trained on": "{seen:,} images, {hours:.1f} h",
        "test bits/dim": "{test[bits]}",
        "clean, purified": purified(0),
        **{
            f"the stronger of FGSM and BIM, eps {eps:g}, purified": purified(eps)
            for eps in sizes
        },
        "images/s": "{speed[images_per_second]:g}",
        f"time, of the first network's (batch {batch})": lambda row: told(
            ratio("ratio", "g"), row["speed"]
        ),
    }
    return table(rows, columns)


def reach() -> str:
    """From `benchmarks/reach.py`."""
    columns = {
        "training": "{training}",
        "parameters": "{millions:.2f} M",
        "timed batch": "{batch}",
        "images/s": "{images_per_second:g}",
        "images": "{images:,}",
        "hours": "{hours:,.0f}",
    }
    return table(measured.rows("reach"), columns)


def arms() -> str:
    """Small density models of equal size as purifiers, on validation images."""
    trainings = {
        row["training"]: row
        for row in measured.read("accelerator")
        if row["stage"] == "train" and row.get("beside")
    }
    models: dict[str, dict[float, list[dict]]] = {}
    for row in measured.read("arms_cifar10"):
        if row["defence"] == "purify" and row["attack"] != WORST:
            sets = models.setdefault(row["density_model"], {})
            sets.setdefault(row["eps_attack"], []).append(row)
    lines = []
    for name, sets in models.items():
        # Of a released model its card tells, of another the row of its training.
        made = trainings.get(name) or measured.card(name)
        last = made if name in trainings else made["training"]
        bits = f"{last['validation_bits_per_dim']:.3f}"
        line = [_ARMS[name], told("{seen:,}", made), bits]
        for eps in (0.0, 2.0, 8.0):
            line.append(interval(min(sets[eps], key=lambda row: row["accuracy"])))
        lines.append(line)
    header = ["density model", "images seen", "bits/dim", "clean", "eps 2", "eps 8"]
    return report.markdown_table(header, lines)


# What is reproduced, and the files under `results/` that have its rows.
_TABLES = {
    "PixelDefend's Table 1, Fashion-MNIST": ("evaluate_fashion_mnist",),
    "PixelDefend's Table 2, CIFAR-10": ("evaluate_cifar10", "graded_jpeg_cifar10"),
    "white-box, Fashion-MNIST": ("white_box_fashion_mnist", "section_4_4"),
    "white-box, CIFAR-10": ("white_box_cifar10",),
    "detection, Fashion-MNIST": ("detection_fashion_mnist",),
    "detection, CIFAR-10": ("detection_cifar10", "detection_report_cifar10"),
    "the thesis's Table 3, MNIST": ("sweep_mnist",),
    "the thesis's Table 4, Fashion-MNIST": ("sweep_fashion_mnist",),
    "p-values in front of PuVAE": ("p_value_fashion_mnist",),
    "density models as purifiers": ("arms_cifar10",),
}
# So many times faster is the purifier on the card that was measured, small batches
# and the attacks on bare classifiers, which gain less, taken into account.
_FASTER = 30


def hours() -> str:
    """How long the tables took, after compilation."""
    lines = []
    for what, files in _TABLES.items():
        rows = [row for name in files for row in measured.read(name)]
        runs = {(row["config"], row["table_seconds"]) for row in rows if _on_cpu(row)}
        seconds = sum(seconds for _, seconds in runs)
        names = ", ".join(f"`results/{name}.jsonl`" for name in files)
        guess = max(1, round(seconds / 60 / _FASTER))
        lines.append([what, names, f"{seconds / 3600:.1f}", f"{guess}"])
    header = ["what", "rows", "hours, CPU", "minutes, one H100 (estimated)"]
    return report.markdown_table(header, lines)


def _on_cpu(row: dict) -> bool:
    return row["device"].endswith("cpu")
