r"""Trains a CIFAR-10 classifier in torch, whose convolutions are faster on a CPU.

Where only CPU cores are to be had, torch in bfloat16 trains ResNet-32 at three to four
times the rate of XLA. The networks, the losses and the augmentation are those of
`--mode=train --config.train.model=classifier`, which stays the recipe; the weights are
written under the names of `pixeldefend.models.classifiers`, and
`reproduction.import_classifier` makes a released model of them:

    python -m reproduction.torch_classifier --data=DATA_DIR/cifar10 --out=RUN \
      --hours=1.8

`--data` holds `train.npz` (`images` uint8 [N, H, W, C], `labels`), of which the last
5 000 are the validation images where there is no `validation.npz`. A run that was
stopped goes on from its last checkpoint, and its hours count.

RUN gets `metrics.jsonl`, `checkpoint.pt` and at the end `classifier.npz`: the averaged
weights, the first eight images of `test.npz` with their float64 logits (so that the
weights can be shown to have arrived), and how they were trained, as JSON. Test images
are read for nothing else.
"""

import argparse
import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from reproduction.torch_networks import NETWORKS, STAGES, flax_variables

TRAININGS = ("normal", "label_smoothing", "adversarial_fgsm", "adversarial_bim")
GROUPS = 4  # of like eps, attacked one after the other by BIM
VALIDATION = 5000
LAMBDA = 0.3  # weight of attacked images in adversarial training


def augmented(images: torch.Tensor, crop: int) -> torch.Tensor:
    """Levels [B, C, H, W], half of them mirrored, each moved by up to `crop` pixels.

    What moves in is reflected, so that it looks like the picture.
    """
    count, _, height, width = images.shape
    mirror = torch.rand(count) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    if not crop:
        return images
    padded = functional.pad(images, (crop,) * 4, mode="reflect")
    rows = torch.randint(2 * crop + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(2 * crop + 1, (count, 1)) + torch.arange(width)
    picked = padded.permute(0, 2, 3, 1)[
        torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return picked.permute(0, 3, 1, 2)  # channels last in memory


def ascended(
    network: nn.Module, images: torch.Tensor, own: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    """`images` after one sign step of sizes [B] away from the labels `own` [B, K].

    The gradient is of logsumexp(others) - logit, which points where cross-entropy's
    does and does not vanish on confident images.
    """
    images = images.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images).float()
    others = logits.masked_fill(own, -math.inf).logsumexp(1)
    (gradient,) = torch.autograd.grad((others - logits[own]).sum(), images)
    return images.detach() + gradient.sign() * step[:, None, None, None]


def attacked(
    network: nn.Module, images: torch.Tensor, training: str, delta: float
) -> torch.Tensor:
    """Moved away from the predicted labels, in inference mode, as `training` says.

    Each by an eps of |N(0, delta)| up to 2 delta: FGSM in one step, BIM in
    floor(min(eps + 4, 1.25 eps)) steps of one level within the ball.
    """
    network.eval()
    eps = torch.randn(len(images)).abs()
    while (eps > 2).any():
        eps = torch.where(eps > 2, torch.randn(len(images)).abs(), eps)
    eps = (delta * eps).sort().values
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        labels = network(images).argmax(1)
    own = functional.one_hot(labels, network.layers()[2][-1].out_features).bool()
    if training == "adversarial_fgsm":
        moved = ascended(network, images, own, eps)
    else:
        groups = torch.arange(len(images)).chunk(GROUPS)
        moved = torch.cat(
            [iterated(network, images[g], own[g], eps[g]) for g in groups]
        )
    network.train()
    return moved.clamp(0, 255)


def iterated(
    network: nn.Module, images: torch.Tensor, own: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """BIM within eps [B] of `images`; an image that has its steps moves no more."""
    counts = torch.minimum(eps + 4, 1.25 * eps).floor()
    ball = eps[:, None, None, None]
    moved = images
    for step in range(int(counts.max())):
        moved = ascended(network, moved, own, (step < counts).float())
        moved = moved.clamp(images - ball, images + ball).clamp(0, 255)
    return moved


def loss_of(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, args
) -> torch.Tensor:
    """Cross-entropy; adversarial training attacks the second half of the batch."""
    clean = len(images)
    if args.training.startswith("adversarial"):
        clean //= 2
        moved = attacked(network, images[clean:], args.training, args.delta)
        images = torch.cat([images[:clean], moved])
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    # `pixeldefend`'s smoothing leaves the right class 0.9; torch's shares among all K.
    classes = logits.shape[1]
    smooth = 0.1 * classes / (classes - 1) if args.training == "label_smoothing" else 0
    losses = functional.cross_entropy(
        logits.float(), labels, reduction="none", label_smoothing=smooth
    )
    if clean == len(images):
        return losses.mean()
    return (losses[:clean].mean() + LAMBDA * losses[clean:].mean()) / (1 + LAMBDA)


@torch.no_grad()
def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    network.eval()
    correct = 0
    for i in range(0, len(images), 500):
        logits = network(images[i : i + 500].permute(0, 3, 1, 2).float())
        correct += (logits.argmax(1) == labels[i : i + 500]).sum().item()
    network.train()
    return correct / len(images)


@torch.no_grad()
def averaged(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Moves every weight of the average, batch statistics included."""
    ours, theirs = average.state_dict(), network.state_dict()
    for name, value in ours.items():
        if value.is_floating_point():
            value.lerp_(theirs[name], 1 - decay)


def arrays(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """`train` and `validation`, images [N, H, W, C] uint8 and labels [N]."""

    def read(split: str) -> tuple:
        with np.load(folder / f"{split}.npz") as file:
            images, labels = file["images"], file["labels"]
        return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))

    train = read("train")
    if (folder / "validation.npz").exists():
        return {"train": train, "validation": read("validation")}
    return {
        "train": tuple(a[:-VALIDATION] for a in train),
        "validation": tuple(a[-VALIDATION:] for a in train),
    }


class Run:
    """Network, average and optimizer, and how far they are: a checkpoint's content."""

    def __init__(self, args: argparse.Namespace, channels: int, classes: int):
        """As at the start, or from the checkpoint that `args.out` has."""
        self.args, self.path = args, pathlib.Path(args.out) / "checkpoint.pt"
        self.step, self.seconds, self.line = 0, 0.0, {}
        self.network, self.average = (
            NETWORKS[args.architecture](
                args.variant, args.divisor, channels, classes
            ).to(memory_format=torch.channels_last)
            for _ in range(2)
        )
        if args.start:
            saved = torch.load(f"{args.start}/checkpoint.pt", weights_only=True)
            self.network.load_state_dict(saved["average"])
        self.average.load_state_dict(self.network.state_dict())
        look = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        weights = self.network.parameters()
        self.optimizer = torch.optim.SGD(weights, args.learning_rate, **look)
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.line = json.loads(saved["line"])
            for name in ("network", "average", "optimizer"):
                getattr(self, name).load_state_dict(saved[name])

    @property
    def progress(self) -> float:
        """The share of its hours that it has had."""
        return self.seconds / (3600 * self.args.hours)

    def rate(self) -> float:
        """The learning rate: a linear warm-up, then a cosine down to zero."""
        warm = min(1.0, (self.step + 1) / self.args.warmup)
        cosine = math.cos(math.pi * min(1.0, self.progress))
        return self.args.learning_rate * warm * 0.5 * (1 + cosine)

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One step on levels [B, C, H, W]; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        images = augmented(images, self.args.crop)
        loss = loss_of(self.network, images, labels, self.args)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        decay = min(self.args.polyak, (1 + self.step) / (10 + self.step))
        averaged(self.average, self.network, decay)
        return loss.item()

    def save(self) -> None:
        """Writes the checkpoint whole."""
        whole = {"step": self.step, "seconds": self.seconds}
        whole["line"] = json.dumps(self.line)
        for name in ("network", "average", "optimizer"):
            whole[name] = getattr(self, name).state_dict()
        torch.save(whole, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").rename(self.path)


def train(args: argparse.Namespace) -> None:
    """Trains until the hours are over, with a line and a checkpoint each epoch."""
    torch.manual_seed(args.seed)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    sets = arrays(pathlib.Path(args.data))
    with np.load(pathlib.Path(args.data) / "test.npz") as file:
        shown = file["images"][:8]
    images, labels = sets["train"]
    run = Run(args, images.shape[3], int(labels.max()) + 1)
    epoch = run.step // (len(images) // args.batch)
    begun = time.monotonic() - run.seconds
    while run.progress < 1:
        order = torch.from_numpy(
            np.random.default_rng((args.seed, epoch)).permutation(len(images))
        )
        losses = []
        for first in range(0, len(images) - args.batch + 1, args.batch):
            rows = order[first : first + args.batch]
            rate = run.rate()
            batch = images[rows].permute(0, 3, 1, 2).float()
            losses.append(run.update(batch, labels[rows]))
            run.seconds = time.monotonic() - begun
            if run.progress >= 1:
                break
        if not math.isfinite(sum(losses)):
            sys.exit(f"the loss is {sum(losses)} at step {run.step}")
        epoch += 1
        run.line = {
            "step": run.step,
            "images": run.step * args.batch,
            "seconds": round(run.seconds, 1),
            "loss": sum(losses) / len(losses),
            "learning_rate": rate,
            "validation_accuracy": accuracy(run.average, *sets["validation"]),
        }
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(run.line) + "\n")
        print(json.dumps(run.line), flush=True)
        run.save()
    finish(run.average, shown, args, run.line)


def finish(
    average: nn.Module, shown: np.ndarray, args: argparse.Namespace, line: dict
) -> None:
    """Writes `classifier.npz`, with the logits of the images `shown`."""
    leaves = flax_variables(average)
    with torch.no_grad():
        levels = torch.from_numpy(shown).permute(0, 3, 1, 2).double()
        logits = average.double().eval()(levels).numpy()
    given = {k: v for k, v in vars(args).items() if k not in ("data", "out")}
    given["start"] = "FIRST_RUN" if args.start else ""
    options = [f"--{k}={v}" for k, v in given.items() if v != DEFAULTS.get(k)]
    command = "python -m reproduction.torch_classifier --data=DATA_DIR/cifar10"
    told = {
        "command": " ".join((command, *options)),
        "training": args.training,
        **({"delta": args.delta} if args.training.startswith("adversarial") else {}),
        "config": given,
        "device": f"cpu, torch {torch.__version__.split('+')[0]} in bfloat16",
        "parameters": sum(p.numel() for p in average.parameters()),
        **line,
    }
    np.savez(
        pathlib.Path(args.out) / "classifier.npz",
        **leaves,
        shown_images=shown,
        shown_logits=logits,
        model=json.dumps({k: getattr(args, k) for k in MODEL}),
        training=json.dumps(told),
    )


MODEL = ("architecture", "variant", "divisor")
DEFAULTS = {
    "architecture": "resnet",
    "variant": "code",
    "divisor": 1,
    "training": "normal",
    "delta": 8.0,
    "start": "",
    "batch": 128,
    "learning_rate": 0.1,
    "warmup": 400,
    "crop": 4,
    "polyak": 0.998,
    "seed": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train.npz")
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--hours", type=float, required=True)
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    for name, known in (
        ("architecture", NETWORKS),
        ("variant", STAGES),
        ("training", TRAININGS),
    ):
        if getattr(args, name) not in known:
            parser.error(f"--{name}: one of {', '.join(known)}")
    train(args)


if __name__ == "__main__":
    main()
