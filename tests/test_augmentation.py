import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend.density import likelihood, pixelcnn
from pixeldefend.experiment import augmentation, density_training


def test_mirroring_turns_about_half_of_the_images_left_to_right(rng):
    images = rng.integers(0, 256, (400, 2, 3, 1), dtype=np.uint8)
    found = np.asarray(augmentation.mirrored(jnp.asarray(images), jax.random.key(0)))
    same = (found == images).all((1, 2, 3))
    turned = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same | turned) and 150 < same.sum() < 250


@pytest.mark.parametrize("most", [1, 3])
def test_crops_are_windows_of_the_reflected_image_and_all_of_them_occur(most, rng):
    images = rng.integers(0, 256, (600, 6, 5, 3), dtype=np.uint8)
    found = jax.jit(augmentation.cropped, static_argnums=2)(
        jnp.asarray(images), jax.random.key(0), most
    )
    assert found.dtype == np.uint8
    edges = ((0, 0), (most, most), (most, most), (0, 0))
    padded = np.pad(images, edges, mode="reflect")
    side = 2 * most + 1
    windows = {
        (i, j): (padded[:, i : i + 6, j : j + 5] == np.asarray(found)).all((1, 2, 3))
        for i in range(side)
        for j in range(side)
    }
    counts = np.array([rows.sum() for rows in windows.values()])
    assert np.sum(list(windows.values()), 0).tolist() == [1] * 600
    # Even over all places: five deviations of a binomial.
    share = 1 / side**2
    assert np.all(np.abs(counts - 600 * share) < 5 * np.sqrt(600 * share))


@pytest.mark.slow
def test_a_density_model_that_mirrors_learns_from_both_sides(rng):
    model = pixelcnn.PixelCNN(features=2, depth=1, mixtures=1, dropout=0.0, channels=1)
    images = rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    params = pixelcnn.init(model, jax.random.key(0), jnp.asarray(images))
    bits = [
        np.asarray(likelihood.bits_per_dim(model, params, shown))
        for shown in (images, images[:, :, ::-1])
    ]
    loss = density_training.loss_fn(model, flip=True)
    batch = {"images": jnp.asarray(images), "labels": jnp.zeros(4, jnp.int32)}
    # Every loss is the mean over one choice of sides, and more than one occurs.
    sides = [
        np.mean([bits[(choice >> i) & 1][i] for i in range(4)]) for choice in range(16)
    ]
    losses = [loss(params, {}, batch, jax.random.key(k))[0] for k in range(12)]
    nearest = [int(np.argmin(np.abs(np.array(sides) - float(x)))) for x in losses]
    for found, choice in zip(losses, nearest, strict=True):
        assert float(found) == pytest.approx(sides[choice], rel=1e-5)
    assert len(set(nearest)) > 4
