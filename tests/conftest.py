"""Every test runs on four CPU devices, with strict types and warnings as errors."""

import os

# Most of a test's time is compilation, so LLVM is told to take it lightly; test_package
# runs what the pages show as a user does.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import tiny

from pixeldefend.defences import purification
from pixeldefend.experiment import zoo

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    # Raised inside packages that we only call.
    for module in ("tensorflow_datasets", "orbax", "etils", "google", "array_record"):
        config.addinivalue_line("filterwarnings", f"ignore:::{module}")
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:importlib")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops what a module has compiled.

    Every program maps memory, and a process may have 65 530 such maps: beyond that it
    ends in a segmentation fault, half an hour into a run of all tests.
    """
    yield
    jax.clear_caches()


class Toy(NamedTuple):
    """A small density model with all that goes with it, and images of its own."""

    folder: str
    model: Any
    params: Any
    reference: np.ndarray
    eps: int
    levels: np.ndarray
    purified: np.ndarray


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """As released, for images of 4 x 6 colour pixels."""
    shape, eps = (4, 6, 3), 9
    model, params, _, _ = tiny(shape, resolutions=1)
    params = jax.tree.map(lambda a: a / 4, params)
    card = {"kind": "pixelcnn", "dataset": "cifar10", "image_shape": shape}
    folder = tmp_path_factory.mktemp("toy") / "pixelcnn"
    reference = np.linspace(-456.0, -449.0, 40)
    zoo.save_released(folder, model, params, card, reference=reference)
    levels = np.random.default_rng(1).integers(0, 256, (11, *shape), dtype=np.uint8)
    run = jax.jit(functools.partial(purification.purify, model, eps=eps))
    purified = np.asarray(run(params, jnp.asarray(levels)))
    return Toy(str(folder), model, params, reference, eps, levels, purified)


@pytest.fixture
def float64():
    """Double precision for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)
