"""Every test runs on four CPU devices, with strict types and warnings as errors."""

import os

# Most of a test's time is compilation, so LLVM is told to take it lightly; test_package
# runs what the README shows as a user does.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

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


@pytest.fixture
def float64():
    """Double precision for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)
