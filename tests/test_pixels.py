import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import tiny

import pixeldefend
from pixeldefend import attacks, pixels
from pixeldefend.density import likelihood
from pixeldefend.models import classifiers

CNN = classifiers.make("cnn", variant="A")


def test_every_level_survives_the_round_trip_fused_or_not():
    levels = jnp.arange(256).astype(jnp.uint8)
    round_trip = lambda x: pixels.to_levels(pixels.to_units(x))  # noqa: E731
    np.testing.assert_array_equal(round_trip(levels), levels)
    np.testing.assert_array_equal(jax.jit(round_trip)(levels), levels)


def test_units_run_from_minus_one_to_one():
    units = pixels.to_units(jnp.array([0, 255], jnp.uint8))
    np.testing.assert_array_equal(units, np.array([-1.0, 1.0], np.float32))


def test_floating_levels_are_the_same_scale():
    levels = jnp.arange(256)
    np.testing.assert_array_equal(
        pixels.to_units(levels.astype(jnp.float32)), pixels.to_units(levels)
    )


def test_floating_levels_undo_units():
    levels = jnp.asarray([0.0, 0.3, 127.5, 254.9, 255.0])
    found = pixels.to_floating_levels(pixels.to_units(levels))
    np.testing.assert_allclose(found, levels, atol=1e-4)


class _Tensor:
    """Of another framework: it has a shape, but is no array of ours."""

    shape, ndim, dtype = (1, 4, 4, 3), 4, "torch.uint8"


@pytest.mark.parametrize(
    "images, error, message",
    [
        (
            np.full((2, 4, 4, 3), 0.5, np.float32),
            ValueError,
            "these are 0..1, multiply",
        ),
        (np.ones((2, 3, 8, 8), np.uint8), ValueError, r"NCHW: images.transpose\(0, 2"),
        (
            np.ones((4, 4, 3), np.uint8),
            ValueError,
            r"for a single image give images\[None\]",
        ),
        (np.ones((2, 4, 4, 1), np.uint8), ValueError, r"must be \[B, H, W, 3\]"),
        (np.ones((2, 4, 4, 3), "m8[s]"), TypeError, "levels 0..255, not timedelta64"),
        (np.ones((2, 4, 4, 3), bool), TypeError, "levels 0..255, not bool"),
        (np.ones((2, 4, 4, 3), complex), TypeError, "levels 0..255, not complex"),
        (_Tensor(), TypeError, r"np.asarray, jnp.from_dlpack\): test_pixels._Tensor"),
        ([[1]], TypeError, "an array of numpy or JAX .*: builtins.list"),
        (np.full((2, 4, 4, 3), 256), ValueError, "must be levels 0 to 255"),
        (np.full((2, 4, 4, 3), -1), ValueError, "must be levels 0 to 255"),
        (np.full((2, 4, 4, 3), np.nan), ValueError, "must be levels 0 to 255"),
        (np.ones((2, 4, 4, 3), ">u2"), TypeError, "byte order, >u2: images.astype"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_do(images, error, message):
    with pytest.raises(error, match=message):
        pixels.check_images(images, 3)


def test_levels_of_any_kind_pass():
    dark = np.zeros((1, 4, 4, 3), np.uint8)
    single = dark.copy()
    single[0, 0, 0, 0] = 1
    for dtype in ("uint8", "int32", "float32", "float64", jnp.bfloat16):
        for images in (dark, single, dark + 200):
            pixels.check_images(images.astype(dtype), 3)
    pixels.check_images(np.full((1, 4, 4, 3), 1.5, np.float32), 3)
    # Traced, there are no values to see.
    half = jnp.full((1, 4, 4, 3), 0.5)
    jax.jit(lambda images: pixels.check_images(images, 3))(half)


@pytest.mark.parametrize(
    "use",
    [
        lambda images: likelihood.bits_per_dim(*tiny((4, 4, 3))[:2], images),
        lambda images: pixeldefend.purify(*tiny((4, 4, 3))[:2], images, eps=2),
        lambda images: pixeldefend.logits(CNN, None, images),
        lambda images: attacks.fgsm(
            lambda variables, images: images[:, 0, 0], None, images, None, eps=2
        ),
    ],
    ids=["score", "purify", "classify", "attack"],
)
def test_every_way_in_takes_levels_only(use):
    with pytest.raises(TypeError, match="an array of numpy or JAX .*: builtins.list"):
        use([[[[1, 2, 3]] * 4] * 4])
    with pytest.raises(ValueError, match="these are 0..1, multiply by 255"):
        use(jnp.full((1, 4, 4, 3), 0.5))


_NONE = np.zeros((0, 4, 4, 3), np.uint8)


def _logits(variables, images):
    return images[:, 0, 0]


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_attacks_need_an_image(name):
    keys = jax.random.split(jax.random.key(0), 0)
    with pytest.raises(
        ValueError, match=r"images must hold at least one: \[0, 4, 4, 3\]"
    ):
        attacks.named(name)(_logits, None, _NONE, None, keys, eps=8)
    with pytest.raises(TypeError, match="an array of numpy or JAX .*: builtins.list"):
        attacks.named(name)(_logits, None, [[[[1, 2, 3]]]], None, keys, eps=8)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, params: likelihood.bits_per_dim(model, params, _NONE),
        lambda model, params: likelihood.log_prob(model, params, _NONE),
        lambda model, params: pixeldefend.init(model, jax.random.key(0), _NONE),
        lambda model, params: pixeldefend.purify(model, params, _NONE, eps=2),
        lambda model, params: pixeldefend.relax(
            model, params, _NONE.astype(np.float32), eps=2
        ),
    ],
    ids=["bits_per_dim", "log_prob", "init", "purify", "relax"],
)
def test_scores_and_searches_need_an_image(use):
    with pytest.raises(
        ValueError, match=r"images must hold at least one: \[0, 4, 4, 3\]"
    ):
        use(*tiny((4, 4, 3))[:2])


def test_filters_and_statistics_of_no_image_are_none():
    assert pixeldefend.squeeze_features(_NONE, colours=8).shape == _NONE.shape
    nothing = jnp.zeros(0)
    assert pixeldefend.p_values(nothing, jnp.arange(9.0)).shape == (0,)
    assert pixeldefend.adaptive_eps(nothing, eps=8, threshold=1.0).shape == (0,)
    with pytest.raises(TypeError, match="an array of numpy or JAX"):
        pixeldefend.squeeze_features([[1]], colours=8)
