"""Every test runs on four CPU devices, with strict types and warnings as errors."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
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


@pytest.fixture
def float64():
    """Double precision for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)
