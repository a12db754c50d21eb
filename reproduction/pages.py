"""Fills README.md and RESULTS.md with the numbers under `results/` and on the cards.

  python -m reproduction.pages            # writes
  python -m reproduction.pages --check    # compares, and says what differs

A page has places `<!-- begin: NAME -->` ... `<!-- end -->`; what stands between is made
here and nowhere else, so that no number is ever copied by hand.
"""

import functools
import pathlib
import re
from collections.abc import Callable

from absl import app, flags

from configs import cifar10, fashion_mnist
from pixeldefend.experiment import (
    evaluate,
    grid,
    published,
    report,
    sweeps,
    tables,
    zoo,
)
from pixeldefend.experiment.rows import read_rows

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "results"
PAGES = ("README.md", "RESULTS.md")
H100 = "NVIDIA H100 80GB HBM3"
_CHECK = flags.DEFINE_bool("check", False, "compare instead of writing")
_PLACE = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

_CLASSIFIERS = (
    "fashion_mnist/resnet",
    "fashion_mnist/resnet-label_smoothing",
    "fashion_mnist/resnet-adversarial_fgsm8",
    "fashion_mnist/resnet-adversarial_fgsm25",
    "fashion_mnist/resnet-adversarial_bim8",
    "fashion_mnist/vgg",
    "fashion_mnist/cnn_a",
    "mnist/cnn_a",
    "cifar10/resnet",
    "cifar10/resnet-longer",
    "cifar10/resnet-label_smoothing",
    "cifar10/resnet-adversarial_fgsm8",
    "cifar10/resnet-adversarial_fgsm8-longer",
    "cifar10/resnet-adversarial_bim8",
    "cifar10/vgg",
)
_AUTOENCODERS = (
    "mnist/puvae",
    "mnist/magnet",
    "fashion_mnist/puvae",
    "fashion_mnist/magnet",
)
_TRAINING_IMAGES = 55_000
_THESIS_EPOCHS = {"mnist": 350, "fashion_mnist": 350, "cifar10": 1024}
_MAGNET_EPOCHS = 100
_DENSITY_MODELS = (
    "fashion_mnist/pixelcnn",
    "cifar10/pixelcnn",
    "mnist/pixelcnn",
)


def read(name: str) -> list[dict]:
    """The rows of a file under `results/`."""
    return read_rows(RESULTS / f"{name}.jsonl")


def _card(name: str) -> dict:
    return zoo.load_card(zoo.find_released(name))


def _runs(card: dict) -> list[dict]:
    """All the training runs that weights come from."""
    return [*card["training"].get("before", []), card["training"]]


def _hours(card: dict) -> str:
    return f"{sum(run['seconds'] for run in _runs(card)) / 3600:.1f}"


def _images(card: dict) -> str:
    return _thousands(sum(run["images"] for run in _runs(card)))


def _thousands(count: int) -> str:
    return f"{count:,}".replace(",", " ")


def _share(figures: dict) -> str:
    return f"{100 * figures['accuracy']:.1f} %"


def _with_interval(figures: dict) -> str:
    low, high = 100 * figures["low"], 100 * figures["high"]
    return f"{_share(figures)} ({low:.1f} to {high:.1f})"


def _network(card: dict) -> str:
    model = card["model"]
    names = {
        ("resnet", "paper"): "ResNet-62",
        ("resnet", "code"): "ResNet-32",
        ("vgg", "paper"): "VGG",
        ("vgg", "code"): "VGG-16",
    }
    plain = names.get((model["architecture"], model["variant"]))
    divided = {1: "", 4: ", quartered"}[model["divisor"]]
    return (plain or f"CNN {model['variant']}") + divided


def _training(card: dict) -> str:
    training = card["training"]
    kind = training["training"].removeprefix("adversarial_")
    if kind == training["training"]:
        return kind.replace("_", " ")
    return f"adversarial {kind.upper()}, delta {training['delta']:g}"


def _attack(key: str) -> str:
    """ "fgsm8" of a card as "FGSM 8"."""
    return re.sub(r"(\D+)(\d+)", lambda m: f"{m[1].upper()} {m[2]}", key)


def _attacked(card: dict) -> dict[str, dict]:
    figures = card["figures"]["test"]
    return {key: found for key, found in figures.items() if key != "clean"}


def density_models() -> str:
    """The released density models, from their cards."""
    header = ["model", "network", "conditionals", "trained on"]
    lines = []
    for name in _DENSITY_MODELS:
        card = _card(name)
        model, test = card["model"], card["figures"]["test"]
        size = card["training"]["parameters"] / 1e6
        network = f"{model['features']} features, depth {model['depth']}"
        lines.append(
            [
                f"`{name}`",
                f"{network}, {size:.2f} M parameters",
                model["conditionals"],
                f"{_images(card)} images, {_hours(card)} h",
                f"{test['bits_per_dim']:.3f} ± {test['half_width_95']:.3f}",
            ]
        )
    count = _thousands(test["n"])
    return report.markdown_table([*header, f"test bits/dim (n = {count})"], lines)


def classifiers() -> str:
    """The released classifiers in short, from their cards."""
    header = ["classifier", "network", "training", "test accuracy", "under FGSM"]
    lines = []
    for name in _CLASSIFIERS:
        card = _card(name)
        fgsm = [
            f"eps {key[4:]}: {_share(found)}"
            for key, found in _attacked(card).items()
            if key.startswith("fgsm")
        ]
        clean = _with_interval(card["figures"]["test"]["clean"])
        lines.append(
            [f"`{name}`", _network(card), _training(card), clean, ", ".join(fgsm)]
        )
    return report.markdown_table(header, lines)


def classifiers_whole() -> str:
    """All that the cards say of the released classifiers."""
    header = [
        "classifier",
        "network, parameters",
        "training, images seen, hours of one core",
        "clean",
        "attacked",
    ]
    lines = []
    for name in _CLASSIFIERS:
        card = _card(name)
        size = _thousands(card["training"]["parameters"])
        attacked = [
            f"{_attack(key)}: {_with_interval(found)}"
            for key, found in _attacked(card).items()
        ]
        lines.append(
            [
                f"`{name}`",
                f"{_network(card)}, {size}",
                f"{_training(card)}; {_images(card)}; {_hours(card)}",
                _with_interval(card["figures"]["test"]["clean"]),
                "; ".join(attacked),
            ]
        )
    return report.markdown_table(header, lines)


def _main_job(name: str) -> str:
    """The table that `--mode=purify` printed, from its rows."""
    rows = read(name)
    titles = ("clean", "{}, eps {:g}", "purified, eps {}")
    clean, attacked, purified = rows
    check_weights(rows)
    names = [
        titles[0],
        titles[1].format(attacked["attack"].upper(), attacked["eps_attack"]),
        titles[2].format(purified["eps_defend"]),
    ]
    table = evaluate.purification_table(dict(zip(names, rows, strict=True)))
    who = (
        f"{clean['n']} images, {attacked['source']}, {purified['threat']}, "
        f"on {clean['device']}"
    )
    return f"```\n{table}\n{who}\n```"


def main_job_sentence() -> str:
    """What purification does to smaller attacks and to clothes, in words."""
    table = _paper_table("cifar10")
    bare, behind = (
        table.cell(f"cifar10/resnet{defence}", tables.STRONGEST, 2.0).ours
        for defence in ("", " + purify")
    )
    attacked, purified = read("purify_fashion_mnist")[1:]
    hard, restored = read("purify_fashion_mnist_bim25")[1:]
    return (
        "p-values find the attack; undoing one of this size is beyond this small "
        "density model.\nOf attacks of eps 2 it undoes most: under the strongest of "
        f"the paper's five, the\nclassifier alone keeps {bare:.1f} %, behind the "
        f"purifier {behind:.1f} %. Clothes are easier: on\nFashion-MNIST "
        "(`configs/fashion_mnist.py`) purification takes the classifier from\n"
        f"{_share(attacked)} under BIM eps 8 to {_share(purified)}, and from "
        f"{_share(hard)} to {_share(restored)} under BIM eps 25\n"
        "(all grey-box; [RESULTS.md](RESULTS.md))."
    )


def speed() -> str:
    """Purification beside a forward pass, from `benchmarks/purify.py`."""
    header = ["device", "features", "depth", "image", "batch"]
    header += ["r (median, lowest to highest)", "naive", "images/s"]
    grey, colour = (28, 28, 1), (32, 32, 3)
    cpu = ((24, 128, grey), (40, 128, grey), (40, 32, grey))
    cpu += tuple((160, batch, colour) for batch in (32, 8, 1))
    gpu = ((24, 512, colour), *((64, batch, colour) for batch in (128, 512, 2048)))
    found = {
        (
            row["device"],
            row["model"]["features"],
            row["images"][0],
            tuple(row["images"][1:]),
        ): row
        for row in read("speed")
    }
    lines = []
    for device, name, wanted in (("cpu", "2 cores", cpu), (H100, "one H100", gpu)):
        for features, batch, image in wanted:
            row = found[device, features, batch, image]
            low, high = row["ratio_to_forward_range"]
            naive, rate = row.get("ratio_naive"), f"{row['images_per_second']:.3g}"
            lines.append(
                [
                    name,
                    features,
                    row["model"]["depth"],
                    " x ".join(map(str, image)),
                    batch,
                    f"**{row['ratio_to_forward']:.2f}** ({low:.2f} to {high:.2f})",
                    f"{naive:.0f} x" if naive else "-",
                    f"{float(rate):g}",
                ]
            )
    return report.markdown_table(header, lines)


def attacks_beside_foolbox() -> str:
    """From `benchmarks/attacks.py`."""
    header = ["classifier", "attack", "success, ours and foolbox's"]
    header += ["median distance, levels", "seconds", "foolbox / ours"]
    lines = []
    for run in read("attacks"):
        for name, found in run.items():
            if not isinstance(found, dict):
                continue
            low, high = found["ratio_range"]
            weights = run["weights"]
            lines.append(
                [
                    "a small CNN" if weights == "random" else f"`{weights}`",
                    name.upper().replace("_", "-"),
                    *(
                        f"{found[f'ours_{what}']:.3g}, {found[f'foolbox_{what}']:.3g}"
                        for what in ("success", "median_distance", "seconds")
                    ),
                    f"**{found['ratio']:.2f}** ({low:.2f} to {high:.2f})",
                ]
            )
    return report.markdown_table(header, lines)


_CONFIGS = {"fashion_mnist": fashion_mnist, "cifar10": cifar10}


def _paper_table(dataset: str) -> tables.Table:
    """The paper's Table 1 (Fashion-MNIST) or 2 (CIFAR-10)."""
    config = _CONFIGS[dataset].get_config().evaluate
    layout = grid.read(config.rows, config.attacks, config.eps_attack)
    rows = read(f"evaluate_{dataset}")
    check_weights(rows)
    return tables.Table(layout, rows, dataset)


def check_weights(rows: list[dict]) -> None:
    """Raises ValueError where rows are of other weights than those released."""
    for kind in ("classifier", "density_model", "puvae", "magnet"):
        for name in {row[kind] for row in rows if row.get(kind)}:
            found = {row[f"{kind}_sha256"] for row in rows if row.get(kind) == name}
            if found != {_card(name)["sha256"][:8]}:
                raise ValueError(f"{name} was released anew: measure again")


def paper_table(dataset: str) -> str:
    """That table, ours beside the paper's.

    Raises:
      ValueError: a cell that has not been measured, or with other weights.
    """
    table = _paper_table(dataset)
    for eps in table.layout.eps:
        for line in table.lines(eps)[1]:
            if "" in line:
                raise ValueError(f"not all of {line[0]} is measured at eps {eps:g}")
    return table.show(report.markdown_table)


def paper_table_made(dataset: str) -> str:
    """How that table was made."""
    rows = read(f"evaluate_{dataset}")
    clean = next(row for row in rows if row["attack"] == grid.CLEAN)
    cw = next(row for row in rows if row["attack"] == "cw")
    hours = clean["table_seconds"] / 3600
    return (
        f"n = {clean['n']} ({clean['input']} images; CW: {cw['n']}), "
        f"{clean['device']}, {hours:.1f} hours after compilation, beside other work."
    )


def claims(dataset: str) -> str:
    """The best baseline and the best purified row."""
    header = ["eps", "best baseline", "strongest attack"]
    header += ["best PixelDefend", "strongest attack", "paper"]
    return report.markdown_table(header, _paper_table(dataset).claims())


def departures(dataset: str) -> str:
    """Cells that are not the paper's."""
    header = ["row", "attack", "eps", "ours (95 %)", "paper", "difference"]
    return report.markdown_table(header, _paper_table(dataset).departures())


def threshold(dataset: str) -> str:
    """How the adaptive threshold was chosen."""
    name = f"{dataset}/pixelcnn"
    found = _card(name)["adaptive"]
    told = (
        f"`{name}`: **{found['threshold']:.2f} bits/dim**, "
        f"on the first {found['n']} {found['input']} images."
    )
    lines = evaluate.threshold_lines(found["curve"], found["threshold"])
    return f"{told}\n\n{report.markdown_table(*lines)}"


def _white_box_rows(dataset: str) -> list[tuple[dict, dict, dict]]:
    """For each defence and eps: its worst row of the paper's attacks, the one of PGD
    that sees everything, and the one of images that survive all of these."""
    rows = read(f"white_box_{dataset}")
    check_weights(rows)
    found: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if row["threat"] is None:
            continue
        key = row["eps_attack"], row["classifier"], row["defence"]
        # On the bare classifier every attack is white-box: those of the paper, and PGD.
        side = {"pgd": "white", tables.WORST: "every"}.get(row["attack"], "grey")
        known = found.setdefault(key, {}).get(side)
        if known is None or row["accuracy"] < known["accuracy"]:
            found[key][side] = row
    return [
        (rows["grey"], rows["white"], rows["every"])
        for _, rows in sorted(found.items())
    ]


def white_box(dataset: str) -> str:
    """Accuracies under an attacker who sees the purifier, beside those under others."""
    header = ["classifier", "defence", "eps", "the paper's attacks (strongest)"]
    header += ["PGD that sees everything", "all attacks", "images/s of PGD"]
    lines = []
    for grey, white, every in _white_box_rows(dataset):
        lines.append(
            [
                f"`{white['classifier']}`",
                white["defence"].replace("_", " "),
                f"{white['eps_attack']:g}",
                f"{_with_interval(grey)}, {grey['attack'].upper()}, n {grey['n']}",
                f"{_with_interval(white)}, n {white['n']}",
                f"**{_with_interval(every)}**, n {every['n']}",
                f"{white['n'] / white['seconds']:.3g}",
            ]
        )
    return report.markdown_table(header, lines)


def headline() -> str:
    """The first line of results: what an attacker gets who does not look, who looks."""
    told = []
    for grey, white, _ in _white_box_rows("fashion_mnist"):
        if white["classifier"].endswith("/resnet") and white["defence"] == "purify":
            told.append(
                f"**{_share(white)}** at eps {white['eps_attack']:g} (grey-box: "
                f"{_share(grey)})"
            )
            count = white["n"]
    return (
        "Fashion-MNIST, ResNet behind PixelDefend, under PGD that sees the purifier "
        f"(white-box,\nBPDA, 100 steps, {count} test images):\n"
        f"{' and '.join(told)}.\n"
        "An attacker who looks through the purifier does more harm than the paper's "
        "attacks;\nnothing here claims robustness."
    )


def section_4_4() -> str:
    """BIM through the unrolled purifier."""
    rows = read("section_4_4")
    check_weights(rows)
    header = ["slope of the purifier", "accuracy", "images/s, with purification"]
    lines = []
    for row in rows:
        if row["attack"] != "bim":
            continue
        name = row["slope"] or "not seen (grey-box)"
        speed = f"{row['n'] / row['seconds']:.2g}"
        lines.append([name, f"{_with_interval(row)}, n {row['n']}", speed])
    return report.markdown_table(header, lines)


def gradients() -> str:
    """Gradient norms behind the purifier."""
    rows = read("gradients_fashion_mnist")
    check_weights(rows)
    return report.markdown_table(*evaluate.slope_table(rows))


def _detection_rows(dataset: str) -> list[dict]:
    rows = read(f"detection_{dataset}")
    check_weights(rows)
    return rows


def detection(dataset: str, eps: float) -> str:
    """p-values of attacked images before and after purification."""
    found = evaluate.detection_table(_detection_rows(dataset), eps)
    return report.markdown_table(*found)


def rejection(dataset: str, eps: float) -> str:
    """What detectors with a threshold reject, and what gets past them."""
    found = evaluate.rejection_table(_detection_rows(dataset), eps)
    return report.markdown_table(*found)


def appendix_a() -> str:
    """ResNet': a random label for whatever is unlikely."""
    header = ["", "rejected", "ResNet", "ResNet'", "paper"]
    paper = {"none": "90.6", "rand": "11.0"}
    lines = []
    for row in _detection_rows("cifar10"):
        if row["defence"] == "none" and row["attack"] in paper:
            name = {"none": "clean", "rand": "RAND, eps 8"}[row["attack"]]
            random = 100 * row["random_label_accuracy"]["0.0175"]
            rejected = f"{100 * row['rejected']['0.0175']:.1f} %"
            own = f"{_share(row)}, n {row['n']}"
            lines.append(
                [name, rejected, own, f"{random:.1f} %", f"{paper[row['attack']]} %"]
            )
    return report.markdown_table(header, lines)


def purifiers(dataset: str) -> str:
    """L-BFGS-B beside greedy decoding."""
    rows = read(f"purifiers_{dataset}")
    check_weights(rows)
    names = {
        "clean": "clean",
        "perturbed": "FGSM, eps 8",
        "purified": "PixelDefend",
        "lbfgs_b": "L-BFGS-B",
    }
    header = ["", "bits/dim (mean, 95 %)", "images", "less likely than the FGSM image"]
    header += ["likelier than PixelDefend's"]
    lines = []
    for row in rows:
        shares = [
            "" if row[key] is None else f"{100 * row[key]:.1f} %"
            for key in ("less_likely_than_attacked", "likelier_than_purified")
        ]
        bits = f"{row['bits_per_dim']:.3f} ± {row['half_width_95']:.3f}"
        lines.append([names[row["stage"]], bits, row["n"], *shares])
    return report.markdown_table(header, lines)


def autoencoders() -> str:
    """The released PuVAEs and MagNets, from their cards."""
    header = ["model", "network", "trained on", "clean images right behind it"]
    header += ["RMSE, 0 to 1"]
    lines = []
    for name in _AUTOENCODERS:
        card = _card(name)
        model, test = card["model"], card["figures"]["test"]
        epochs = sum(run["images"] for run in _runs(card)) / _TRAINING_IMAGES
        if card["kind"] == "puvae":
            network = f"{model['variant']}, {model['latents']} latents"
            theirs = _THESIS_EPOCHS[card["dataset"]]
        else:
            network = f"{' and '.join(model['autoencoders'])}, {model['copies']} copies"
            theirs = _MAGNET_EPOCHS
        if model.get("divisor", 1) > 1:
            network += f", divided by {model['divisor']}"
        lines.append(
            [
                f"`{name}`",
                network,
                f"{epochs:.1f} epochs ({theirs}), {_hours(card)} h",
                f"{_with_interval(test)}, `{test['classifier']}`",
                f"{test['rmse'] / 255:.3f}",
            ]
        )
    return report.markdown_table(header, lines)


def _sweep_rows(dataset: str) -> list[dict]:
    rows = read(f"sweep_{dataset}")
    check_weights(rows)
    return rows


def sweep(dataset: str, defences: tuple[str, ...]) -> str:
    """The thesis's Tables 3 to 5."""
    return report.markdown_table(*sweeps.lines(_sweep_rows(dataset), defences))


def _of_curve(
    rows: list[dict], attack: str, defence: str, slope: str = ""
) -> list[dict]:
    """A curve of fractional levels."""
    return sweeps.curves(_alike(rows, attack, defence, slope)).popitem()[1]


def _last(rows: list[dict], attack: str, defence: str, slope: str = "") -> dict:
    """The largest eps of such a curve, of as many images as there are."""
    return sweeps.largest(_alike(rows, attack, defence, slope)).popitem()[1]


def _alike(rows: list[dict], attack: str, defence: str, slope: str) -> list[dict]:
    levels = None if attack == grid.CLEAN else "fractional"
    wanted = (attack, defence, slope or None, levels)
    return [
        row
        for row in rows
        if (row["attack"], row["defence"], row["slope"], row.get("levels")) == wanted
    ]


def sweep_claims(dataset: str) -> str:
    """The thesis's claims, each with a number."""
    rows = _sweep_rows(dataset)
    ours, bare = "reject_rmse+puvae", "puvae"
    lines = []

    def add(claim: str, theirs: str, found: str) -> None:
        lines.append([claim, theirs, found])

    clean = _last(rows, grid.CLEAN, bare)
    attacked = _last(rows, "pgd", bare)
    told = dataset == "mnist"
    add(
        "mean RMSE, clean and PGD of the largest eps (0 to 1)",
        "0.04, 0.13" if told else "",
        f"{clean['rmse'] / 255:.3f}, {attacked['rmse'] / 255:.3f}",
    )
    (bar,) = _last(rows, grid.CLEAN, ours)["thresholds"]["reject_rmse"]
    rejected = []
    for attack in ("fgsm", "bim", "pgd"):
        worst = sweeps.worst(_of_curve(rows, attack, ours))
        rejected.append(
            f"{attack.upper()} {100 * worst['rejected']:.1f} % at "
            f"{worst['eps_attack'] / 255:.2f}"
        )
    add(
        "rejected at the worst eps",
        "1.8 to 18.3 %" if told else "",
        "; ".join(rejected),
    )
    worst = sweeps.worst(_of_curve(rows, "pgd", ours))
    add(
        "the eps of PGD that hurts most, and t (0 to 1)",
        "slightly above t",
        f"{worst['eps_attack'] / 255:.2f}, {bar / 255:.3f}",
    )
    for defence in (bare, ours):
        distances = []
        for slope in ("", "straight_through"):
            found = []
            for attack in ("fgsm", "bim", "pgd"):
                own = _last(rows, attack, defence, slope)
                kind = "detector" if defence == ours else "puvae"
                theirs = published.thesis(dataset, attack, kind)
                found.append(abs(100 * own["accuracy"] - theirs))
            distances.append(sum(found) / len(found))
        name = "PuVAE" if defence == bare else "PuVAE with the detector"
        add(
            f"mean distance of {name} from the thesis's FGSM, BIM and PGD, points",
            "",
            f"attacks on the bare classifier {distances[0]:.1f}, through the purifier "
            f"{distances[1]:.1f}",
        )
    seen = []
    for slope, name in (
        ("bpda", "BPDA"),
        ("straight_through", "its slope"),
        ("expectation", "expectation over its noise"),
    ):
        seen.append(f"{name} {_share(_last(rows, 'pgd', bare, slope))}")
    add("PuVAE under PGD of the largest eps that looks through it", "", "; ".join(seen))
    add(
        "PGD in L-infinity and in L2, each where the bare classifier is nearest 10 %",
        "no difference",
        "; ".join(_in_norm(rows, attack) for attack in ("pgd", "pgd_l2")),
    )
    return report.markdown_table(["claim", "thesis", "here"], lines)


def _in_norm(rows: list[dict], attack: str) -> str:
    """PuVAE at the eps where the bare classifier's accuracy is nearest to 10 %."""
    bare = {row["eps_attack"]: row for row in _of_curve(rows, attack, "none")}
    behind = {row["eps_attack"]: row for row in _of_curve(rows, attack, "puvae")}
    eps = min(behind, key=lambda eps: abs(bare[eps]["accuracy"] - 0.1))
    norm = "L2" if attack == "pgd_l2" else "L-infinity"
    return (
        f"{norm} {eps / 255:.2g}: bare {_share(bare[eps])}, PuVAE {_share(behind[eps])}"
    )


def false_positives() -> str:
    """Clean test images that detectors reject."""
    header = ["data set", "detector", "asked for", "rejected (95 %)", "n"]
    lines = []
    for dataset in ("mnist", "fashion_mnist"):
        for row in read(f"calibrate_{dataset}"):
            if _card(row["weights"])["sha256"][:8] != row["sha256"]:
                raise ValueError(f"{row['weights']} was released anew: calibrate again")
            low, high = 100 * row["low"], 100 * row["high"]
            lines.append(
                [
                    dataset,
                    row["detector"],
                    f"{100 * row['false_positive_rate']:g} %",
                    f"{100 * row['rejected']:.2f} % ({low:.2f} to {high:.2f})",
                    row["n"],
                ]
            )
    return report.markdown_table(header, lines)


def evading() -> str:
    """Attacks that see purifier and detector."""
    header = ["data set", "defence", "eps, 0 to 1", "right", "wrong", "rejected"]
    header += ["success in the attacker's own draw", "n"]
    lines = []
    for dataset in ("mnist", "fashion_mnist"):
        for row in _sweep_rows(dataset):
            if row["attack"] != grid.EVADE:
                continue
            shares = (row["right"], row["wrong"], row["rejected"])
            lines.append(
                [
                    dataset,
                    row["defence"].replace("+", ", "),
                    f"{row['eps_attack'] / 255:.2f}",
                    *(f"{100 * share:.0f} %" for share in shares),
                    f"{100 * row['success']:.0f} %",
                    row["n"],
                ]
            )
    return report.markdown_table(header, lines)


def p_values_in_front(dataset: str) -> str:
    """PixelDefend and PuVAE with and without the p-value as a detector."""
    rows = read(f"p_value_{dataset}")
    check_weights(rows)
    classifier = f"{dataset}/cnn_a"
    defences = dict.fromkeys(row["defence"] for row in rows)
    texts = [
        " + ".join((classifier, *(() if d == "none" else d.split("+"))))
        for d in defences
    ]
    sizes = dict.fromkeys(r["eps_attack"] for r in rows if r["attack"] == "pgd")
    columns = [f"{name} preset=thesis" for name in ("fgsm", "bim", "pgd")]
    layout = grid.read(texts, columns, sizes)
    return tables.Table(layout, rows, dataset).show(report.markdown_table)


def purifier_speed() -> str:
    """From `benchmarks/purifiers.py`."""
    header = ["data set", "batch", "purifier", "images/s", "times PixelDefend"]
    lines = []
    for run in read("purifiers_speed"):
        for name in ("pixeldefend", "puvae", "magnet"):
            one = run[name]
            low, high = one["range"]
            ratio = f"**{one['times_pixeldefend']:g}** ({low:g} to {high:g})"
            lines.append(
                [
                    run["dataset"],
                    run["batch"],
                    name,
                    f"{one['images_per_second']:g}",
                    ratio if name != "pixeldefend" else "1",
                ]
            )
    return report.markdown_table(header, lines)


def networks(name: str) -> str:
    """From `benchmarks/networks.py`."""
    rows = read(name)
    sizes = sorted({row["eps_attack"] for row in rows[0]["accuracies"]} - {0})
    header = ["network", "trained on", "test bits/dim", "clean, purified"]
    header += [f"the stronger of FGSM and BIM, eps {eps:g}, purified" for eps in sizes]
    header += ["images/s", f"time, of the first network's (batch {_batch(rows)})"]
    lines = []
    for row in rows:
        purified = [one for one in row["accuracies"] if one["defence"] == "purify"]
        cells = [
            min(
                (one for one in purified if one["eps_attack"] == eps),
                key=lambda one: one["accuracy"],
            )
            for eps in (0, *sizes)
        ]
        test, speed = row["test"], row["speed"]
        low, high = speed["ratio_range"]
        hours = row["seconds"] / 3600
        lines.append(
            [
                f"{row['network']}, {row['parameters'] / 1e6:.2f} M parameters",
                f"{_thousands(row['images'])} images, {hours:.1f} h",
                f"{test['bits_per_dim']:.3f} ± {test['half_width_95']:.3f}",
                *(f"{_with_interval(cell)}, n {cell['n']}" for cell in cells),
                f"{speed['images_per_second']:g}",
                f"**{speed['ratio']:g}** ({low:g} to {high:g})",
            ]
        )
    return report.markdown_table(header, lines)


def reach() -> str:
    """From `benchmarks/reach.py`."""
    header = ["training", "parameters", "timed batch", "images/s", "images", "hours"]
    lines = [
        [
            row["training"],
            f"{row['parameters'] / 1e6:.2f} M",
            row["batch"],
            f"{row['images_per_second']:g}",
            _thousands(row["images"]),
            _thousands(round(row["hours"])),
        ]
        for row in read("reach")
    ]
    return report.markdown_table(header, lines)


def _batch(rows: list[dict]) -> int:
    (batch,) = {row["speed"]["batch"] for row in rows}
    return batch


_OWN = ("none", "puvae", "reject_rmse+puvae")
_OTHERS = ("magnet", "reject_magnet+magnet", "reject_p_value+puvae")

PLACES: dict[str, Callable[[], str]] = {
    "autoencoders": autoencoders,
    "sweep_mnist": functools.partial(sweep, "mnist", _OWN),
    "sweep_fashion_mnist": functools.partial(sweep, "fashion_mnist", _OWN),
    "sweep_others_mnist": functools.partial(sweep, "mnist", _OTHERS),
    "sweep_others_fashion_mnist": functools.partial(sweep, "fashion_mnist", _OTHERS),
    "sweep_claims_mnist": functools.partial(sweep_claims, "mnist"),
    "sweep_claims_fashion_mnist": functools.partial(sweep_claims, "fashion_mnist"),
    "false_positives": false_positives,
    "evading": evading,
    "p_values_fashion_mnist": functools.partial(p_values_in_front, "fashion_mnist"),
    "purifier_speed": purifier_speed,
    "density_models": density_models,
    "sizes_fashion_mnist": functools.partial(networks, "sizes_fashion_mnist"),
    "conditionals_cifar10": functools.partial(networks, "conditionals_cifar10"),
    "reach": reach,
    "classifiers": classifiers,
    "classifiers_whole": classifiers_whole,
    "main_job_cifar10": functools.partial(_main_job, "purify_cifar10"),
    "main_job_fashion_mnist": functools.partial(_main_job, "purify_fashion_mnist"),
    "main_job_bim25": functools.partial(_main_job, "purify_fashion_mnist_bim25"),
    "main_job_sentence": main_job_sentence,
    "speed": speed,
    "attacks_beside_foolbox": attacks_beside_foolbox,
    "table_1": functools.partial(paper_table, "fashion_mnist"),
    "table_1_made": functools.partial(paper_table_made, "fashion_mnist"),
    "claims": functools.partial(claims, "fashion_mnist"),
    "departures": functools.partial(departures, "fashion_mnist"),
    "threshold": functools.partial(threshold, "fashion_mnist"),
    "table_2": functools.partial(paper_table, "cifar10"),
    "table_2_made": functools.partial(paper_table_made, "cifar10"),
    "claims_cifar10": functools.partial(claims, "cifar10"),
    "departures_cifar10": functools.partial(departures, "cifar10"),
    "threshold_cifar10": functools.partial(threshold, "cifar10"),
    "headline": headline,
    "white_box": functools.partial(white_box, "fashion_mnist"),
    "white_box_cifar10": functools.partial(white_box, "cifar10"),
    "section_4_4": section_4_4,
    "gradients": gradients,
    "detection_cifar10": functools.partial(detection, "cifar10", 8),
    "detection_fashion_mnist": functools.partial(detection, "fashion_mnist", 8),
    "detection_fashion_mnist_25": functools.partial(detection, "fashion_mnist", 25),
    "rejection_cifar10": functools.partial(rejection, "cifar10", 8),
    "rejection_fashion_mnist": functools.partial(rejection, "fashion_mnist", 8),
    "rejection_fashion_mnist_25": functools.partial(rejection, "fashion_mnist", 25),
    "appendix_a": appendix_a,
    "purifiers_cifar10": functools.partial(purifiers, "cifar10"),
    "purifiers_fashion_mnist": functools.partial(purifiers, "fashion_mnist"),
}


def filled(text: str) -> str:
    """A page with every place filled anew.

    Raises:
      ValueError: a place that nothing here fills.
    """

    def fill(match: re.Match) -> str:
        begin, name, end = match.groups()
        if name not in PLACES:
            raise ValueError(f"nothing fills the place {name!r}")
        return f"{begin}\n{PLACES[name]()}\n\n{end}"

    return _PLACE.sub(fill, text)


def main(_: list[str]) -> None:
    """Fills the pages, or compares them."""
    stale = []
    for name in PAGES:
        page = ROOT / name
        old = page.read_text()
        new = filled(old)
        if new != old:
            stale.append(name)
            if not _CHECK.value:
                page.write_text(new)
    if _CHECK.value and stale:
        raise SystemExit(f"{', '.join(stale)}: run python -m reproduction.pages")
    print("written:" if stale else "up to date", *stale)


if __name__ == "__main__":
    app.run(main)
