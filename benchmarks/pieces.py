"""Trained weights in files small enough to leave a machine that lets only few out."""

import io
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend.experiment import checkpoints, zoo

PIECE = 15_000_000  # bytes of weights in one file
MOST = 60_000_000  # bytes of weights in float32; more go as bfloat16


def _paths(first: pathlib.Path) -> list[pathlib.Path]:
    """Those pieces of a training that are there, by their numbers."""
    # One training's name may begin with another's.
    numbered = re.compile(rf"{re.escape(first.name)}-(\d+)\.npz")
    found = {
        int(match[1]): path
        for path in first.parent.glob("*.npz")
        if (match := numbered.fullmatch(path.name))
    }
    return [found[number] for number in sorted(found)]


def pack(run: pathlib.Path, to: pathlib.Path) -> int:
    """Writes a trained model as pieces of less than 16 MiB.

    Args:
      run: workdir of the training, with `model` and `metrics.jsonl`.
      to: what the names begin with: OUT/NAME for OUT/NAME-0.npz and so on. Pieces of
        an earlier training of this name go.

    Returns:
      How many there are.
    """
    _, params, card = zoo.load_released(str(run))
    leaves = {name: np.asarray(a) for name, a in checkpoints.flat(params).items()}
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
    for path in _paths(to):
        path.unlink()
    of = f"{card['sha256']} in {len(pieces)}"
    for number, piece in enumerate(pieces):
        temporary = to.parent / f".{to.name}-{number}.npz"
        np.savez(temporary, of=of, **piece)
        temporary.rename(to.parent / f"{to.name}-{number}.npz")
    return len(pieces)


def assemble(first: pathlib.Path, to: pathlib.Path) -> None:
    """Makes of the pieces of a training a model that `load_released` reads.

    Args:
      first: what the names of the pieces begin with, OUT/NAME of OUT/NAME-0.npz.
      to: folder for the model.

    Raises:
      SystemExit: pieces are missing, damaged, or not those of one model.
    """
    leaves: dict[str, Any] = {}
    paths, ofs = _paths(first), set()
    for path in paths:
        try:
            # From memory: numpy leaves a damaged file open.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                leaves |= dict(file)
        except Exception as error:  # numpy raises many kinds for a broken file
            raise SystemExit(f"{path} is damaged: {error}") from error
        ofs.add(str(leaves.pop("of", "")))
    if len(ofs) > 1 or "" in ofs:
        raise SystemExit(f"{first}-*.npz are not the pieces of one training")
    if not paths or int(ofs.pop().split()[-1]) != len(paths):
        raise SystemExit(f"of {first}-*.npz only {len(paths)} are there")
    card = json.loads(str(leaves.pop("card")))
    metrics = str(leaves.pop("metrics"))
    model = zoo.make(card)
    like = zoo.abstract_params(card["kind"], model, tuple(card["image_shape"]))

    def leaf(name: str, wanted: Any) -> np.ndarray:
        found = leaves[name]
        if found.dtype == np.uint16:
            found = found.view(jnp.bfloat16)
        return found.astype(wanted.dtype).reshape(wanted.shape)

    names = iter(checkpoints.flat(like))
    params = jax.tree.map(lambda wanted: leaf(next(names), wanted), like)
    whole = zoo.fingerprint(params)
    if card.get("weights") != "bfloat16" and whole != card["sha256"]:
        raise SystemExit(f"{first}-*.npz are damaged: their weights are not the card's")
    del card["model"]
    zoo.save_released(to, model, params, card)
    (to / "metrics.jsonl").write_text(metrics)
    print(f"model written to {to}")
