"""What else the papers show: `python -m reproduction --config=... --mode=figures`."""

from pixeldefend import cli
from pixeldefend.experiment.modes import Mode
from reproduction.comparing import compare_purifiers, gradients
from reproduction.drifting import drift
from reproduction.figures import figures

_READS = {"purify": ("eps",)}
_WEIGHTS = ("pixelcnn", "classifier")
MODES = {
    "figures": Mode(figures, weights=()),
    "compare_purifiers": Mode(compare_purifiers, weights=_WEIGHTS, reads=_READS),
    "gradients": Mode(gradients, weights=_WEIGHTS, reads=_READS),
    "drift": Mode(drift, weights=_WEIGHTS, reads=_READS),
}

if __name__ == "__main__":
    cli.run(MODES)
