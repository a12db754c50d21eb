import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import SHAPE, bent, compiled, draw, linear, sizes

from pixeldefend import attacks

# Enough for the small networks here.
L2 = functools.partial(
    attacks.cw_l2, search_steps=5, steps=60, step_size=0.05, initial_const=1e-2
)
LINF = functools.partial(attacks.cw_linf, steps=60, step_size=0.02, largest_const=1.0)
BOTH = [pytest.param(L2, "l2", id="l2"), pytest.param(LINF, "linf", id="linf")]


def _change(found, images):
    return np.asarray(found, float) - np.asarray(images, float)


class _Adam:
    """Kingma and Ba's algorithm 1, of one image."""

    def __init__(self, step_size):
        self.step_size, self.count, self.mean, self.square = step_size, 0, 0.0, 0.0

    def __call__(self, slope):
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * slope
        self.square = 0.999 * self.square + 0.001 * slope**2
        mean = self.mean / (1 - 0.9**self.count)
        square = self.square / (1 - 0.999**self.count)
        return -self.step_size * mean / (np.sqrt(square) + 1e-8)


def _point(levels):
    inside = np.clip(np.asarray(levels, float), 0.4, 254.6)
    return np.arctanh((inside - 127.5) / 127.5)


@functools.partial(jax.jit, static_argnames="cost")
def _seen(variables, point, start, label, const, bound, cost):
    """Levels, margin, loss and slope of one image."""

    def loss(point):
        moved = 127.5 * (jnp.tanh(point) + 1)
        logits = bent(variables, moved[None])[0]
        margin = logits[label] - jnp.max(logits.at[label].set(-jnp.inf))
        total = cost((moved - start) / 255, bound) + const * jnp.maximum(margin, 0)
        return total, (moved, margin, total)

    slope, seen = jax.grad(loss, has_aux=True)(point)
    return (*seen, slope)


def _squares(change, bound):
    return jnp.sum(change**2)


def _excess(change, bound):
    return jnp.sum(jnp.maximum(jnp.abs(change) - bound, 0))


def _naive_l2(variables, image, label, *, search_steps, steps, initial_const, early):
    start = np.asarray(image, float)
    best, nearest = start, np.inf
    const, lower, upper = initial_const, 0.0, np.inf
    for _ in range(search_steps):
        point, adam, succeeded, previous = _point(start), _Adam(0.05), False, np.inf
        for step in range(steps):
            moved, margin, loss, slope = _seen(
                variables, point, start, label, const, 0.0, _squares
            )
            if margin < 0:
                succeeded = True
                distance = np.linalg.norm(np.asarray(moved - start))
                if distance < nearest:
                    best, nearest = moved, distance
            if early and step % int(np.ceil(steps / 10)) == 0:
                if not loss <= 0.9999 * previous:
                    break
                previous = loss
            point = point + adam(np.asarray(slope))
        if succeeded:
            upper = const
        else:
            lower = const
        const = 10 * const if np.isinf(upper) else (lower + upper) / 2
    return best


def _naive_linf(variables, image, label, *, steps, initial_const, largest_const):
    start = best = np.asarray(image, float)
    tau, const = 1.0, initial_const
    while tau > 1 / 256:
        point, adam, found = _point(best), _Adam(0.02), None
        while const < largest_const and found is None:
            for _ in range(steps):
                moved, margin, loss, slope = _seen(
                    variables, point, start, label, const, tau, _excess
                )
                if margin < 0 and loss < 1e-4 * const:
                    found = np.asarray(moved)
                    break
                point = point + adam(np.asarray(slope))
            else:
                const *= 2
        if found is None:
            return best
        best = found
        tau = 0.9 * min(tau, np.abs(best - start).max() / 255)
    return best


@pytest.mark.parametrize("early", [True, False])
def test_the_l2_attack_equals_a_naive_loop(float64, rng, early):
    variables, images, labels = draw(rng, 4, dtype="float64")
    options = {"search_steps": 4, "steps": 40, "initial_const": 1e-2}
    run = compiled(L2, quantise=False, abort_early=early, **options)
    found, info = run(variables, images.astype(jnp.float64), labels)
    assert np.all(info.success)
    assert (np.min(info.steps) < 160) == early
    for i in range(4):
        expected = _naive_l2(
            variables, images[i], int(labels[i]), early=early, **options
        )
        np.testing.assert_allclose(found[i], expected, atol=1e-6)


def test_the_linf_attack_equals_a_naive_loop(float64, rng):
    variables, images, labels = draw(rng, 3, dtype="float64")
    options = {"steps": 30, "initial_const": 1e-2, "largest_const": 0.1}
    run = compiled(LINF, quantise=False, **options)
    found, info = run(variables, images.astype(jnp.float64), labels)
    assert np.all(info.success)
    for i in range(3):
        expected = _naive_linf(variables, images[i], int(labels[i]), **options)
        np.testing.assert_allclose(found[i], expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_boundaries_are_reached_at_their_distance(rng, norm):
    # In the middle of the range, so that its ends do not matter.
    images = jnp.asarray(rng.integers(110, 146, (4, *SHAPE), dtype=np.uint8))
    weights = rng.normal(size=(40, 2)) / 10
    bias = rng.normal(size=2)
    variables = jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32)
    logits = np.asarray(images, float).reshape(4, -1) @ weights + bias
    slope = weights[:, 0] - weights[:, 1]
    dual = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
    expected = np.abs(logits[:, 0] - logits[:, 1]) / dual
    if norm == "l2":
        attack = functools.partial(L2, search_steps=9, steps=300, step_size=0.01)
    else:
        attack = functools.partial(
            LINF, steps=400, step_size=0.005, initial_const=0.1, decrease_factor=0.98
        )
    run = jax.jit(functools.partial(attack, linear, quantise=False))
    _, info = run(variables, images, None)
    assert np.all(info.success) and np.min(expected) > 1
    ratio = np.asarray(info.distance) / expected
    assert np.all(ratio > 0.999) and np.all(ratio < 1.04), ratio


def test_confidence_is_kept(rng):
    variables, images, labels = draw(rng, 4)
    for confidence in (0.0, 0.5):
        run = compiled(L2, confidence=confidence, quantise=False)
        found, info = run(variables, images, labels)
        logits = np.array(bent(variables, found))
        own = logits[np.arange(4), labels].copy()
        logits[np.arange(4), labels] = -np.inf
        lead = logits.max(-1) - own
        assert np.all(info.success) and np.all(lead >= confidence)
        assert np.all(lead < confidence + 0.4)


@pytest.mark.parametrize("attack, norm", BOTH)
def test_rounding_keeps_success_and_nearly_the_distance(rng, attack, norm):
    variables, images, labels = draw(rng, 32)
    task = variables, images, labels
    floating, before = compiled(attack, quantise=False)(*task)
    whole, after = compiled(attack)(*task)
    assert whole.dtype == jnp.uint8 and floating.dtype == jnp.float32
    assert np.all(before.success) and np.all(after.success)
    undone = jnp.argmax(bent(variables, jnp.round(floating)), -1) == labels
    assert np.mean(np.asarray(undone)) > 0.1
    assert np.all(jnp.argmax(bent(variables, whole), -1) != labels)
    large = np.asarray(before.distance) > 3
    ratio = np.asarray(after.distance)[large] / np.asarray(before.distance)[large]
    assert np.median(ratio) < 1.2


@pytest.mark.parametrize("attack, norm", BOTH)
@pytest.mark.parametrize("quantise", [True, False])
def test_results_stay_in_the_ball_and_among_levels(rng, attack, norm, quantise):
    variables, images, labels = draw(rng, 6)
    task = variables, images, labels
    run = compiled(attack, quantise=quantise, keep_failed=True)
    far = np.asarray(run(*task, eps=jnp.full(6, 1e6))[1].distance)
    eps = jnp.asarray(far * np.tile([0.5, 2.0], 3), jnp.float32)
    found, info = run(*task, eps=eps)
    assert found.dtype == (jnp.uint8 if quantise else jnp.float32)
    moved = sizes(_change(found, images), norm)
    assert np.all(moved <= np.asarray(eps) * (1 + 1e-5)) and np.any(moved[::2] > 0)
    assert np.min(found) >= 0 and np.max(found) <= 255
    np.testing.assert_allclose(moved, info.distance, rtol=1e-4)
    assert np.all(info.success[1::2]) and not np.all(info.success[::2])
    clean, _ = compiled(attack, quantise=quantise)(*task, eps=eps)
    failed = ~np.asarray(info.success)
    np.testing.assert_array_equal(clean[failed], images[failed].astype(clean.dtype))


@pytest.mark.parametrize("attack, norm", BOTH)
def test_without_success_clean_images_are_returned(rng, attack, norm):
    variables, images, labels = draw(rng, 4)
    # Adam takes no step that would be large enough.
    hopeless = compiled(attack, steps=2, step_size=1e-6)
    found, info = hopeless(variables, images, labels)
    assert not np.any(info.success) and np.all(info.distance == 0)
    np.testing.assert_array_equal(found, images)
    assert np.all(info.steps > 0)


@pytest.mark.parametrize("name, preset", [("cw_l2", "strong"), ("cw", "paper")])
def test_images_of_nothing_but_the_ends_are_no_shelter(rng, name, preset):
    # A logit that one level at every value overcomes; Adam begins where tanh is flat.
    variables, images, _ = draw(rng, 4)
    images = jnp.where(images < 128, 0, 255).astype(jnp.uint8)
    signs = 1 - 2 * (np.asarray(images) > 0)
    # Linear in levels: the margin of class 0 is 20 on the image itself, and falls by
    # one a level.
    for image, sign in zip(images, signs, strict=True):
        weights = jnp.stack([jnp.zeros(40), jnp.asarray(sign.ravel(), jnp.float32)], 1)
        bias = jnp.stack([20, -image.ravel().astype(jnp.float32) @ weights[:, 1]])
        run = jax.jit(functools.partial(attacks.named(name, preset), linear))
        _, info = run((weights, bias), image[None], jnp.zeros(1, jnp.int32))
        assert info.success[0] and info.distance[0] < 8


@pytest.mark.parametrize("attack, norm", BOTH)
def test_images_that_are_not_taken_for_their_label_come_back(rng, attack, norm):
    variables, images, labels = draw(rng, 4)
    others = labels.at[::2].set((labels[::2] + 1) % 5)
    found, info = compiled(attack)(variables, images, others)
    np.testing.assert_array_equal(found[::2], images[::2])
    assert np.all(info.success) and np.all(info.steps[::2] == 0)
    assert np.all(info.distance[::2] == 0) and np.all(info.steps[1::2] > 0)


@pytest.mark.parametrize("attack, norm", BOTH)
@pytest.mark.slow
def test_neither_lanes_nor_the_batch_change_an_image(float64, rng, attack, norm):
    # In double precision: a long descent repeats no rounding errors.
    variables, images, labels = draw(rng, 5, dtype="float64")
    images = images.astype(jnp.float64)
    run = compiled(attack, quantise=False)
    expected, reference = run(variables, images, labels)
    for lanes in (1, 3):
        other = compiled(attack, quantise=False, lanes=lanes)
        found, info = other(variables, images, labels)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_array_equal(info.steps, reference.steps)
    part, _ = run(variables, images[2:4], labels[2:4])
    np.testing.assert_allclose(part, expected[2:4], atol=1e-6)


@pytest.mark.parametrize("attack, norm", BOTH)
def test_one_compile_serves_every_eps(rng, attack, norm):
    variables, images, labels = draw(rng, 4)
    run = jax.jit(functools.partial(attack, bent))
    found = [run(variables, images, labels, eps=eps)[0] for eps in (1.0, 99.0)]
    assert run._cache_size() == 1
    assert np.any(found[0] != found[1])


@pytest.mark.parametrize(
    "attack, options, message",
    [
        (attacks.cw_l2, {"steps": 0}, "steps must be at least 1: 0"),
        (attacks.cw_l2, {"search_steps": 0}, "search_steps must be at least 1: 0"),
        (attacks.cw_l2, {"confidence": -1.0}, "confidence must not be negative"),
        (attacks.cw_linf, {"const_factor": 1.0}, "const_factor must be above 1"),
        (attacks.cw_linf, {"decrease_factor": 1.0}, "decrease_factor between 0 and 1"),
    ],
)
def test_mistakes_are_told(rng, attack, options, message):
    with pytest.raises(ValueError, match=message):
        attack(bent, *draw(rng, 2), **options)
