"""Classifiers of the user's own, named as `module:object`, in place of weights."""

import hashlib
import importlib
import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pixeldefend.experiment import files, foreign, parallel, zoo
from pixeldefend.models import classifiers

_NAMED = re.compile(r"(?P<module>.+):(?P<object>[A-Za-z_]\w*)")
_PROBES = 8  # random images whose logits tell a network from another


def is_named(weights: str) -> bool:
    """Whether `weights` is `module:object` or `file.py:object`, no model's folder."""
    return _NAMED.fullmatch(weights) is not None


def load(weights: str, dataset: str, shape: tuple[int, int, int]) -> zoo.Loaded:
    """A classifier of the user's own, in the form of a released one.

    The object is a pure function of JAX, from floating levels `[B, H, W, C]`, 0..255,
    to logits `[B, K]`; or a torch module, from `[B, C, H, W]` in 0..1, which attacks
    look through as well.

    Its variables are nothing but a digest of what it makes of a few random images,
    since its weights are out of sight.

    Args:
      weights: `module:object`, the module lying in the folder that one is in or being
        installed; or `path/to/file.py:object`.
      dataset: that it is for.
      shape: (H, W, C) of its images.

    Raises:
      ValueError: there is no such object, or it gives no logits of such images.
    """
    function = _found(weights)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(function, torch.nn.Module):
        from pixeldefend.adapters.torch import logits_fn

        function = logits_fn(function)
    rng = np.random.default_rng(0)
    probes = rng.integers(0, 256, (_PROBES, *shape)).astype(np.float32)
    try:
        with parallel.on_host():  # traced twice, which draws what is drawn in Python
            logits, again = (
                np.asarray(jax.jit(lambda images: function(images))(probes))
                for _ in range(2)
            )
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"{weights} cannot be computed: it converts images to numpy, which JAX "
            "cannot trace; use jax.numpy there"
        ) from error
    except Exception as error:  # it is anybody's code
        raise ValueError(_failed(weights, "cannot be computed", error)) from error
    _check(weights, logits, again)
    digest = hashlib.sha256(weights.encode() + logits.tobytes()).hexdigest()
    model = classifiers.Own(f"{weights} {digest[:16]}", logits.shape[1], function)
    # Among what results are marked with.
    variables = {"digest": np.frombuffer(bytes.fromhex(digest), np.uint8)}
    variables = jax.tree.map(lambda digits: digits.astype(np.float32), variables)
    card = {
        "kind": "classifier",
        "name": weights,
        "dataset": dataset,
        "image_shape": list(shape),
        "sha256": digest,
        "training": {"training": "own"},
    }
    return zoo.Loaded(model, variables, card)


def _check(weights: str, logits: np.ndarray, again: np.ndarray) -> None:
    """Raises ValueError where what was computed, twice, is not the logits of images."""
    if logits.ndim != 2 or len(logits) != _PROBES or logits.dtype.kind != "f":
        raise ValueError(
            f"{weights} returns {logits.dtype} {logits.shape} for {_PROBES} images; "
            f"logits must be floating point, ({_PROBES}, K)"
        )
    if logits.shape[1] < 2 or not np.all(np.isfinite(logits)):
        raise ValueError(
            f"{weights} returns logits {logits.shape}; they must be finite, for at "
            "least two classes"
        )
    if not np.allclose(logits, again, rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"{weights} returns different logits for the same images when called "
            "again: it must be a function of the images alone"
        )
    if np.all(logits >= 0) and np.allclose(logits.sum(1), 1, atol=1e-3):
        print(
            f"{weights} seems to return probabilities, which weaken attacks: return "
            "logits, without the softmax"
        )


def _found(weights: str) -> Callable:
    """The object that is named; ValueError where it cannot be had."""
    words = _NAMED.fullmatch(weights)
    assert words is not None  # or it would not have been taken for one's own
    module_name, object_name = words.group("module", "object")
    try:
        module = _imported(module_name)
    except Exception as error:  # whatever it does when it is imported
        raise ValueError(_failed(weights, "cannot be imported", error)) from error
    found = getattr(module, object_name, None)
    if not callable(found):
        there = [n for n, one in vars(module).items() if callable(one) and n[0] != "_"]
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        raise ValueError(
            f"{module_name} has no function or network {object_name}, only "
            f"{', '.join(there[:5]) or 'none'}{more}"
        )
    return found


def _imported(name: str) -> Any:
    """A module by its name, or by the path of its file."""
    if not name.endswith(".py"):
        here = str(pathlib.Path.cwd())
        if here not in sys.path:  # an installed program does not look there
            sys.path.append(here)
        return importlib.import_module(name)
    path = files.expanded(name)
    foreign.check_regular(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # as for every .py
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def _failed(weights: str, how: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{weights} {how}: {type(error).__name__}: {reason}"
