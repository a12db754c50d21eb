"""Trained weights in files small enough to leave a machine that lets only few out."""

import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import checkpoint

PIECE = 15_000_000  # bytes of weights in one file
MOST = 60_000_000  # bytes of weights in float32; more go as bfloat16


def pack(run: pathlib.Path, to: pathlib.Path) -> int:
    """Writes a trained model as `to`-0.npz, ... of less than 16 MiB; their number."""
    _, params, card = checkpoint.load_released(str(run))
    leaves = {name: np.asarray(a) for name, a in checkpoint.flat(params).items()}
    half = sum(a.nbytes for a in leaves.values()) > MOST
    told = {
        "card": json.dumps(card | ({"weights": "bfloat16"} if half else {})),
        "metrics": (run / "metrics.jsonl").read_text(),
    }
    pieces: list[dict] = [told]
    size = 0
    for name, leaf in leaves.items():
        if half:
            leaf = np.asarray(jnp.asarray(leaf, jnp.bfloat16)).view(np.uint16)
        if size + leaf.nbytes > PIECE and size:
            pieces.append({})
            size = 0
        pieces[-1][name] = leaf
        size += leaf.nbytes
    to.parent.mkdir(parents=True, exist_ok=True)
    for number, piece in enumerate(pieces):
        np.savez(to.parent / f"{to.name}-{number}.npz", **piece)
    return len(pieces)


def assemble(first: pathlib.Path, to: pathlib.Path) -> None:
    """Makes of the pieces of a training a model that `load_released` reads.

    Args:
      first: what the names of the pieces begin with, OUT/NAME of OUT/NAME-0.npz.
      to: folder for the model.

    Raises:
      SystemExit: pieces are missing, or are not those of one model.
    """
    # One training's name may begin with another's.
    numbered = re.compile(rf"{re.escape(first.name)}-\d+\.npz")
    paths = [path for path in first.parent.iterdir() if numbered.fullmatch(path.name)]
    leaves: dict[str, Any] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            leaves |= dict(file)
    if "card" not in leaves:
        raise SystemExit(f"no {first.name}-0.npz in {first.parent}, with the card")
    card = json.loads(str(leaves.pop("card")))
    metrics = str(leaves.pop("metrics"))
    model = checkpoint.make(card)
    like = checkpoint.abstract_params(card["kind"], model, tuple(card["image_shape"]))
    missing = set(checkpoint.flat(like)) - set(leaves)
    if missing:
        raise SystemExit(f"a piece is missing: no {min(missing)} in {len(paths)} files")

    def leaf(name: str, wanted: Any) -> np.ndarray:
        found = leaves[name]
        if found.dtype == np.uint16:
            found = found.view(jnp.bfloat16)
        return found.astype(wanted.dtype).reshape(wanted.shape)

    names = iter(checkpoint.flat(like))
    params = jax.tree.map(lambda wanted: leaf(next(names), wanted), like)
    del card["model"]
    checkpoint.save_released(to, model, params, card)
    (to / "metrics.jsonl").write_text(metrics)
    checkpoint.load_released(str(to))
    print(f"model written to {to}")
