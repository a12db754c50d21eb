"""Defences: what images pass on their way to a classifier, and detectors.

To add one, write a file with a subclass of `base.Defence` (or `base.Smooth`,
`base.Detector`) and name it here: it is then known to every mode.
"""

from pixeldefend.defences import (
    compression,
    filters,
    graded,
    magnet,
    purification,
    puvae,
    reject,
)
from pixeldefend.defences.base import Defence

# By name, in the text of a row: "cifar10/resnet + squeeze + purify".
DEFENCES: dict[str, type[Defence]] = {
    defence.name: defence
    for defence in (
        filters.Squeeze,
        filters.Median,
        filters.TotalVariation,
        filters.BitDepth,
        filters.Mirror,
        compression.Jpeg,
        compression.Jpeg50,
        compression.Jpeg20,
        purification.Purify,
        graded.PurifyAdaptively,
        graded.PurifyGraded,
        puvae.Reconstruct,
        magnet.Reform,
        reject.RejectUnlikely,
        puvae.RejectDistant,
        magnet.RejectUnstable,
    )
}
