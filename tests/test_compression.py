import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pixeldefend import data
from pixeldefend.defences import compression


def _through_a_file(image, quality):
    """As libjpeg has it, colours at half the resolution."""
    file = io.BytesIO()
    options = {} if image.shape[-1] == 1 else {"subsampling": 2}
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality, **options)
    return np.asarray(Image.open(file)).reshape(image.shape)


@pytest.mark.parametrize("quality", [1, 20, 50, 75, 95, 100])
@pytest.mark.parametrize(
    "name, height, width",
    [("cifar10", 32, 32), ("cifar10", 17, 23), ("fashion_mnist", 28, 28)],
)
def test_images_are_those_of_a_jpeg_file(name, height, width, quality):
    images = data.sample(name)[0][:32, :height, :width]
    expected = np.stack([_through_a_file(i, quality) for i in images]).astype(int)
    compress = jax.jit(compression.compress, static_argnames="quality")
    found = np.asarray(jnp.round(compress(jnp.asarray(images), quality=quality)), int)
    apart, moved = np.abs(found - expected), np.abs(expected - images)
    # A coefficient next to a tie may be rounded otherwise, and moves its block.
    assert np.mean(apart) < 1
    assert np.mean(apart) < 0.35 * np.mean(moved) or quality == 100
    assert np.mean(apart <= 2) > 0.88


def test_the_gradient_is_that_of_not_rounding(rng):
    images = jnp.asarray(rng.uniform(100, 150, (1, 8, 8, 1)), jnp.float32)
    towards = jnp.asarray(rng.normal(size=images.shape), jnp.float32)

    def along(images):
        return jnp.sum(towards * compression.compress(images, quality=75))

    # Without rounding the two transforms undo each other.
    np.testing.assert_allclose(jax.grad(along)(images), towards, atol=1e-4)


@pytest.mark.parametrize("quality", [0, 101])
def test_qualities_that_there_are_not_are_refused(quality):
    with pytest.raises(ValueError, match="quality must be between 1 and 100"):
        compression.compress(jnp.zeros((1, 8, 8, 1), jnp.uint8), quality=quality)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="1 channel or 3 for JPEG: 2"):
        compression.compress(jnp.zeros((1, 8, 8, 2), jnp.uint8), quality=75)
