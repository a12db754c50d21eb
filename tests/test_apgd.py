import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import mostly_slow
from networks import bent, draw, linear, sizes

from pixeldefend import attacks
from pixeldefend.attacks import norms
from pixeldefend.attacks.losses import LOSSES

STATIC = ("norm", "loss", "targets", "lanes", "keep_failed")
EPS = {"linf": 6.0, "l2": 25.0}
CASES = mostly_slow(
    [("ce", "linf"), ("targeted_dlr", "l2"), ("dlr", "linf")]
    + [("ce", "l2"), ("dlr", "l2"), ("targeted_dlr", "linf")],
    quick=2,
)


def keys(count):
    return jax.random.split(jax.random.key(7), count)


@functools.partial(jax.jit, static_argnames=STATIC)
def attacked(
    variables, images, labels, key, eps, steps=20, norm="linf", loss="ce", **options
):
    options = {"norm": norm, "loss": loss, "steps": steps} | options
    return attacks.apgd(bent, variables, images, labels, key, eps=eps, **options)


def safe(variables, images):
    """`bent`, but class 0 leads by so much that nothing is ever fooled."""
    logits = bent(variables, images)
    return logits.at[:, 0].add(12)


def _loss(kind, logits, label, aim):
    """By the formulas of the paper, of one image."""
    falling = -jnp.sort(-logits)
    if kind == "ce":
        return jax.nn.logsumexp(logits) - logits[label]
    if kind == "dlr":
        other = falling[1]  # the label leads
        return -(logits[label] - other) / (falling[0] - falling[2])
    middle = (falling[2] + falling[3]) / 2
    return -(logits[label] - logits[aim]) / (falling[0] - middle)


def _naive(variables, image, start, aim, norm, kind, eps, steps):
    """The best point of one image by the paper's algorithm 1, with a list of losses."""

    @jax.jit
    @jax.value_and_grad
    def loss(x):
        return _loss(kind, safe(variables, x[None])[0], 0, aim)

    def at(x):
        value, slope = loss(jnp.asarray(x))
        return float(value), np.asarray(slope)

    def project(x):
        if norm == "linf":
            return np.clip(np.clip(x, image - eps, image + eps), 0, 255)
        size = np.linalg.norm(x - image)
        return np.clip(image + (x - image) * min(1, eps / max(size, 1e-9)), 0, 255)

    def ahead(x, length, slope):
        unit = np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope)
        return project(x + length * unit)

    value, slope = at(start)
    x = before = start
    best, history, length = (value, x, slope), [value], 2 * eps
    checked, gap = 0, int(0.22 * steps)
    halved, best_then = True, None
    for k in range(1, steps + 1):
        share = 1 if k == 1 else 0.75
        moved = x + share * (ahead(x, length, slope) - x) + (1 - share) * (x - before)
        before, x = x, project(moved)
        value, slope = at(x)
        history.append(value)
        if value > best[0]:
            best = value, x, slope
        if k == checked + gap:
            rises = sum(history[i] > history[i - 1] for i in range(checked + 1, k + 1))
            halved = rises <= 0.75 * gap or (not halved and best_then >= best[0])
            best_then, checked = best[0], k
            gap = max(gap - int(0.03 * steps), int(0.06 * steps))
            if halved:
                length /= 2
                _, x, slope = best
    return best[1]


@pytest.mark.parametrize(("loss", "norm"), CASES)
def test_ascent_is_the_papers_algorithm(rng, float64, norm, loss):
    variables, images, _ = draw(rng, 6, dtype="float64")
    images = images.astype(jnp.float64)
    eps, steps, key = EPS[norm], 50, keys(6)
    aims = jnp.asarray([1, 2, 3, 4, 1, 2])
    found, info = attacks.apgd(
        safe,
        variables,
        images,
        jnp.zeros(6, jnp.int32),
        key,
        eps=eps,
        norm=norm,
        loss=loss,
        targets=aims if loss == "targeted_dlr" else 9,
        steps=steps,
        quantise=False,
        keep_failed=True,
    )
    assert not np.any(info.success) and np.all(info.steps == steps)
    first = jax.vmap(jax.random.fold_in)(key, jnp.zeros(6, jnp.int32))
    starts = norms.named(norm).draw(first, images, jnp.full(6, eps))
    for i in range(6):
        task = np.asarray(images[i]), np.asarray(starts[i]), int(aims[i])
        expected = _naive(variables, *task, norm, loss, eps, steps)
        np.testing.assert_allclose(found[i], expected, atol=1e-4)


@pytest.mark.parametrize(("loss", "norm"), CASES)
def test_what_is_returned_is_whole_in_the_ball_and_judged(rng, norm, loss):
    variables, images, labels = draw(rng, 32)
    eps = jnp.linspace(0, EPS[norm] / 2, 32)
    found, info = attacked(
        variables, images, labels, keys(32), eps, norm=norm, loss=loss
    )
    assert found.dtype == jnp.uint8
    change = np.asarray(found, float) - np.asarray(images, float)
    assert np.all(sizes(change, norm) <= eps)
    np.testing.assert_allclose(info.distance, sizes(change, norm), rtol=1e-6)
    guesses = jnp.argmax(bent(variables, found.astype(jnp.float32)), -1)
    np.testing.assert_array_equal(info.success, guesses != labels)
    assert 0 < np.mean(info.success) < 1
    np.testing.assert_array_equal(found[~info.success], images[~info.success])


def test_an_image_depends_on_nothing_but_itself_and_its_key(rng):
    variables, images, labels = draw(rng, 12)
    loss = "targeted_dlr"
    key, eps = keys(12), jnp.float32(3)
    found, info = attacked(
        variables, images, labels, key, eps, loss=loss, lanes=3, keep_failed=True
    )
    order = np.array([7, 2, 11, 0])
    other, its = attacked(
        variables,
        images[order],
        labels[order],
        key[order],
        eps,
        loss=loss,
        lanes=4,
        keep_failed=True,
    )
    np.testing.assert_array_equal(other, found[order])
    np.testing.assert_array_equal(its.queries, info.queries[order])
    assert len(set(np.asarray(info.queries).tolist())) > 1


@pytest.mark.parametrize("loss", LOSSES)
def test_scaling_the_logits_changes_nothing(rng, loss):
    variables, images, labels = draw(rng, 16)
    eps = jnp.float32(3)
    found, _ = attacked(variables, images, labels, keys(16), eps, loss=loss)
    # A power of two, so that nothing is rounded otherwise; cross-entropy is 0 there.
    first, second = variables
    larger, _ = attacked(
        (first, 4096 * second), images, labels, keys(16), eps, loss=loss
    )
    if loss == "ce":  # the other classes weigh otherwise
        assert np.mean(np.any(larger != images, (1, 2, 3))) > 0.2
    else:
        np.testing.assert_array_equal(found, larger)


@pytest.mark.parametrize("norm", EPS)
def test_the_worst_point_for_a_linear_network_is_found(rng, norm):
    weights = jnp.asarray(rng.normal(size=(40, 2)), jnp.float32)
    images = jnp.asarray(rng.integers(100, 156, (4, 5, 4, 2), dtype=np.uint8))
    variables = weights, jnp.asarray([1e5, 0], jnp.float32)
    found, _ = attacks.apgd(
        linear,
        variables,
        images,
        jnp.zeros(4, jnp.int32),
        keys(4),
        eps=EPS[norm],
        norm=norm,
        loss="dlr",  # two classes leave no ratio
        quantise=False,
        keep_failed=True,
    )
    slope = np.asarray(weights[:, 1] - weights[:, 0]).reshape(5, 4, 2)
    unit = np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope)
    expected = np.asarray(images, float) + EPS[norm] * unit
    np.testing.assert_allclose(found, expected, atol=0.02 * EPS[norm])


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_will_do(rng, classes):
    variables, images, labels = draw(rng, 12, classes=classes)
    for loss in LOSSES:
        _, info = attacked(
            variables, images, labels, keys(12), jnp.float32(4), loss=loss
        )
        assert np.any(info.success), loss


def test_restarts_and_targets_find_more_and_stop_at_the_first_success(rng):
    variables, images, labels = draw(rng, 48)
    task, eps = (variables, images, labels, keys(48)), jnp.float32(2)
    _, one = attacked(*task, eps, loss="targeted_dlr", targets=1)
    _, all_ = attacked(*task, eps, loss="targeted_dlr", targets=9)  # four there are
    assert np.all(all_.success[one.success]) and all_.success.sum() > one.success.sum()
    np.testing.assert_array_equal(all_.queries[one.success], one.queries[one.success])
    lost = ~np.asarray(all_.success)
    # Four attempts of a start and 20 steps; labels' rank, the end, and rounded ones.
    assert np.all(all_.steps[lost] == 4 * 20)


def test_one_program_serves_every_eps_and_number_of_steps(rng):
    variables, images, labels = draw(rng, 4)
    before = attacked._cache_size()
    for eps, steps in ((1.0, 5), (2.5, 9)):
        attacked(variables, images, labels, keys(4), jnp.float32(eps), jnp.int32(steps))
    assert attacked._cache_size() == before + 1


def noisy(variables, images):
    """A linear network hidden by noise of its key: a single look misleads."""
    noise = 6 * jax.random.normal(variables["key"], (1, 40), images.dtype)
    noise = jnp.concatenate([noise, -noise])
    return linear(variables["true"], images) + images.reshape(-1, 40) @ noise.T


@pytest.mark.slow
def test_expectation_sees_through_draws(rng):
    weights = jnp.asarray(rng.normal(size=(40, 2)), jnp.float32)
    images = jnp.asarray(rng.integers(100, 156, (8, 5, 4, 2), dtype=np.uint8))
    slope = weights[:, 1] - weights[:, 0]
    # The label leads by as much as two thirds of the ball undo.
    own = linear((weights, jnp.zeros(2)), images)
    lead = 4 * jnp.sum(jnp.abs(slope)) * 2 / 3
    true = weights, jnp.asarray([float(lead + jnp.max(own[:, 1] - own[:, 0])), 0])
    variables = {"true": true, "key": jax.random.key(3)}
    labels = jnp.zeros(8, jnp.int32)
    gains = []
    for draws in (1, 64):
        found, _ = attacks.apgd(
            noisy,
            variables,
            images,
            labels,
            keys(8),
            eps=4.0,
            steps=25,
            draws=draws,
            keep_failed=True,
        )
        moved = np.asarray(found, float) - np.asarray(images, float)
        gains.append(np.mean(moved.reshape(8, -1) @ np.asarray(slope)))
    assert gains[1] > 2 * gains[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of ce, dlr, targeted_dlr"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"draws": -1}, "draws must be at least 0"),
        ({"draws": 2}, "draws need a random logits_fn"),
        ({"norm": "l7"}, "norm must be one of linf, l2"),
        ({"loss": "targeted_dlr", "targets": 0}, "targets must be at least 1"),
        (
            {"loss": "targeted_dlr", "targets": jnp.asarray([1, 2, 9])},
            "labels must be 0 to 4: 9",
        ),
        ({"key": None}, "a random attack needs keys"),
    ],
)
def test_what_cannot_be_is_said(rng, options, message):
    variables, images, labels = draw(rng, 3)
    options = {"eps": 2.0, "key": keys(3)} | options
    with pytest.raises(ValueError, match=message):
        attacks.apgd(bent, variables, images, labels, **options)
