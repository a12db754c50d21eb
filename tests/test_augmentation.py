import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend.density import conditionals, likelihood, pixelcnn
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


def test_noise_has_three_kinds_and_many_sizes(rng):
    images = np.full((600, 8, 8, 1), 128, np.uint8)
    found = augmentation.noisy(jnp.asarray(images), jax.random.key(0), 40.0)
    assert found.dtype == jnp.uint8
    noise = np.asarray(found).astype(np.int64) - 128
    largest = np.abs(noise).max((1, 2, 3))
    untouched = largest == 0
    assert 0.2 < untouched.mean() < 0.3
    # Signs: all levels of an image are as far away; 150 images, five deviations.
    signs = (np.abs(noise) == largest[:, None, None, None]).all((1, 2, 3)) & ~untouched
    assert 97 < signs.sum() < 203
    # Of the rest, Gaussian noise alone goes beyond what all others are bounded by.
    assert largest[signs].max() <= 40 and largest.max() > 40
    sizes = np.sort(largest[signs])
    assert np.abs(sizes / 40 - np.linspace(0, 1, len(sizes))).max() < 0.15
    # Levels end at 0 and 255.
    edges = augmentation.noisy(jnp.asarray(images * 0), jax.random.key(1), 40.0)
    assert np.asarray(edges).max() < 200


@pytest.mark.slow
def test_a_density_model_that_is_given_noise_predicts_clean_levels(rng):
    model = pixelcnn.PixelCNN(
        features=2, depth=1, mixtures=2, dropout=0.0, conditionals="joint"
    )
    images = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    params = pixelcnn.init(model, jax.random.key(0), jnp.asarray(images))
    context = np.clip(images + rng.integers(-9, 10, images.shape), 0, 255)
    context = context.astype(np.uint8)
    # All 256 levels of every conditional, given the context, channels included.
    outputs = pixelcnn.apply(model, params, context)
    table = conditionals.level_log_probs(
        model.family, params["head"], outputs, jnp.asarray(context)
    )
    nats = np.take_along_axis(np.asarray(table), images[..., None].astype(int), -1)
    batch = {"images": jnp.asarray(images), "labels": jnp.zeros(3, jnp.int32)}
    found = likelihood.loss(model, params, batch | {"context": context}, None)
    assert float(found) == pytest.approx(-nats.mean() / np.log(2), rel=1e-5)
    # And so in training, where an image without noise is scored as ever.
    loss = density_training.loss_fn(model, noise=1e-9)
    plain = likelihood.bits_per_dim(model, params, images).mean()
    assert float(loss(params, {}, batch, jax.random.key(1))[0]) == pytest.approx(
        float(plain), rel=1e-6
    )
    losses = {
        float(density_training.loss_fn(model, noise=90.0)(params, {}, batch, key)[0])
        for key in jax.random.split(jax.random.key(2), 6)
    }
    assert len(losses) > 4
    with pytest.raises(ValueError, match="noise must be from 0 to 127"):
        density_training.loss_fn(model, noise=128.0)
