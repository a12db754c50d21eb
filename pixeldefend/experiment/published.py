"""Accuracies that others published, to stand beside ours; percent of the test images.

PixelDefend (Song et al., ICLR 2018), Tables 1 and 2, with eps_defend 32 for
Fashion-MNIST and 16 for CIFAR-10. Wester and Thisted's thesis on PuVAE with a detector
(2020), Tables 3 to 5, at eps 0.3 (CIFAR-10: 0.06) of the range 0..1. With them, what
these and the MagNet paper (Meng and Chen, 2017) say of training, and claims in words.
"""

_ATTACKS = ("none", "rand", "fgsm", "bim", "deepfool", "cw", "strongest")
EPS_DEFEND = {"fashion_mnist": 32, "cifar10": 16}
_EPS = {"fashion_mnist": (8, 25), "cifar10": (2, 8, 16)}
# Network, training and defences; then a cell for each attack, a number for each eps.
_TABLES = {
    "fashion_mnist": """
        resnet normal none              93/93 89/71 38/24 00/00 06/06 20/01 00/00
        vgg normal none                 92/92 91/87 73/58 36/08 49/14 43/23 36/08
        resnet adversarial_fgsm none    93/93 92/89 85/85 51/00 63/07 67/21 51/00
        resnet adversarial_bim none     92/91 92/91 84/79 76/63 82/72 81/70 76/63
        resnet label_smoothing none     93/93 91/76 73/45 16/00 29/06 33/14 16/00
        resnet normal squeeze           84/84 84/70 70/28 56/25 83/83 83/83 56/25
        resnet adversarial_fgsm squeeze 88/88 87/82 80/77 70/46 86/82 84/85 70/46
        resnet normal purify            88/88 88/89 85/74 83/76 87/87 87/87 83/74
        vgg normal purify               89/89 89/89 87/82 85/83 88/88 88/88 85/82
        resnet adversarial_fgsm purify  90/89 91/90 88/82 85/76 90/88 89/88 85/76
        resnet adversarial_fgsm purify_adaptive
                                        91/91 91/91 88/88 85/84 89/90 89/84 85/84
    """,
    "cifar10": """
        resnet normal none
            92/92/92 92/87/76 33/15/11 10/00/00 12/06/06 07/00/00 07/00/00
        vgg normal none
            89/89/89 89/88/80 60/46/30 44/02/00 57/25/11 37/00/00 37/00/00
        resnet adversarial_fgsm none
            91/91/91 90/88/84 88/91/91 24/07/00 45/00/00 20/00/07 20/00/00
        resnet adversarial_bim none
            87/87/87 87/87/86 80/52/34 74/32/06 79/48/25 76/42/08 74/32/06
        resnet label_smoothing none
            92/92/92 91/88/77 73/54/28 59/08/01 56/20/10 30/02/02 30/02/01
        resnet normal squeeze
            84/84/84 83/82/76 31/20/18 13/00/00 75/75/75 78/78/78 13/00/00
        resnet adversarial_fgsm squeeze
            86/86/86 85/84/81 73/67/55 55/02/00 85/85/85 83/83/83 55/02/00
        resnet normal purify
            85/85/88 82/83/84 73/46/24 71/46/25 80/80/80 78/78/78 71/46/24
        vgg normal purify
            82/82/82 82/82/84 80/62/52 80/61/48 81/76/76 81/79/79 80/61/48
        resnet adversarial_fgsm purify
            88/88/86 86/86/87 81/68/67 81/69/56 85/85/85 84/84/84 81/69/56
        resnet adversarial_fgsm purify_adaptive
            90/90/90 86/87/87 81/70/67 81/70/56 82/81/82 81/80/81 81/70/56
    """,
}


def _read(dataset: str) -> dict[tuple, float]:
    words = _TABLES[dataset].split()
    width = 3 + len(_ATTACKS)
    found = {}
    for start in range(0, len(words), width):
        row, cells = words[start : start + 3], words[start + 3 : start + width]
        for attack, cell in zip(_ATTACKS, cells, strict=True):
            for eps, percent in zip(_EPS[dataset], cell.split("/"), strict=True):
                found[*row, attack, eps] = float(percent)
    return found


_PERCENT = {dataset: _read(dataset) for dataset in _TABLES}


def accuracy(
    dataset: str, network: str, training: str, defence: str, attack: str, eps: float
) -> float | None:
    """Percent of the test images, or None where the paper has no such cell.

    Args:
      dataset: "fashion_mnist" or "cifar10".
      network: "resnet" or "vgg".
      training: as for `--config.classifier.training`.
      defence: see `grid.Pipeline.defence`.
      attack: its name; "none" for clean images, "strongest" for the least of all.
      eps: of the column, levels; also for clean images.
    """
    cells = _PERCENT.get(dataset, {})
    return cells.get((network, training, defence, attack, eps))


# Song et al., Appendix A: ResNet', clean and under RAND of eps 8 on CIFAR-10, percent.
RANDOM_LABEL = {"none": 90.6, "rand": 11.0}

# Of training, by kind and data set.
EPOCHS = {
    ("puvae", "mnist"): 350,
    ("puvae", "fashion_mnist"): 350,
    ("puvae", "cifar10"): 1024,
    ("magnet", "mnist"): 100,
    ("magnet", "fashion_mnist"): 100,
}

# Attack; then no defence, PuVAE, PuVAE with the detector, and that at the worst eps.
_THESIS = {
    "mnist": """
        none 99.2 97.2 97.2 -
        fgsm 23.2 82.9 99.8 96.2
        bim  0.2  93.9 93.9 93.9
        pgd  0.0  86.4 96.9 93.0
    """,
    "fashion_mnist": """
        none 92.2 82.5 82.1 -
        fgsm 25.4 55.6 87.9 74.2
        bim  20.9 77.8 77.5 77.5
        pgd  1.6  67.3 77.1 73.2
    """,
    "cifar10": """
        none 80.2 42.3 41.7 -
        fgsm 11.4 25.3 30.4 30.4
        bim  4.7  31.7 34.9 34.9
        pgd  0.2  35.1 37.1 37.1
    """,
}
_KINDS = ("none", "puvae", "detector", "worst")
THESIS_ATTACKS = ("fgsm", "bim", "pgd")
# The largest eps of the thesis, of the range 0..1; the tables are at it.
THESIS_EPS = {"mnist": 0.3, "fashion_mnist": 0.3, "cifar10": 0.06}
# RMSE, 0..1, clean and under PGD of the largest eps; rejected at the worst eps.
THESIS_CLAIMS = {"mnist": {"rmse": "0.04, 0.13", "rejected": "1.8 to 18.3 %"}}


def thesis(dataset: str, attack: str, kind: str) -> float | None:
    """Percent of the test images in the thesis, or None where it has no such cell.

    Args:
      dataset: "mnist", "fashion_mnist" or "cifar10".
      attack: "none", "fgsm", "bim" or "pgd".
      kind: "none" for the bare classifier, "puvae", "detector" for PuVAE with it, and
        "worst" for that at the eps that hurts most.
    """
    for line in _THESIS.get(dataset, "").strip().splitlines():
        name, *cells = line.split()
        if name == attack:
            cell = cells[_KINDS.index(kind)]
            return None if cell == "-" else float(cell)
    return None
