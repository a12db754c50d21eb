"""What holds for every attack, by name and preset."""

import functools
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import mostly_slow

from pixeldefend import attacks
from pixeldefend.attacks import gradients, norms, outcome

SHAPE = (6, 5, 1)
KINDS = [
    (name, preset)
    for name, known in attacks.ATTACKS.items()
    for i, (preset, options) in enumerate(known.presets.items())
    if options not in list(known.presets.values())[:i]
]
USUAL = [(name, attacks.usual(name)) for name in attacks.ATTACKS]
# AutoAttack's parts are attacks of their own, and quicker to compile.
QUICK = [kind for kind in USUAL if not kind[0].startswith("auto_attack")]
ALL, EACH = (
    mostly_slow(QUICK + [kind for kind in kinds if kind not in QUICK], len(QUICK))
    for kinds in (KINDS, USUAL)
)
# As many steps as these small problems can use.
FEWER = {
    "auto_attack": {"steps": 20, "queries": 60},
    "auto_attack_l2": {"steps": 20, "queries": 60},
    "cw": {"steps": 40},
    "cw_l2": {"steps": 60, "search_steps": 4},
    "fab": {"steps": 10},
    "fab_l2": {"steps": 10},
    "square": {"queries": 100},
    "square_l2": {"queries": 100},
}
SIZES = {"linf": norms.linf, "l2": norms.l2, "l0": norms.l0}
EPS = {"linf": 20.0, "l2": 600.0, "l0": 12.0}


def logits_fn(variables, images):
    """A small network, in the images' own precision."""
    kept = jnp.issubdtype(images.dtype, jnp.floating)
    flat = images.reshape(images.shape[0], -1)
    flat = flat.astype(images.dtype if kept else jnp.float32)
    first, second = (variables[name].astype(flat.dtype) for name in ("first", "second"))
    return jnp.tanh(flat @ first) @ second


def constant(variables, images):
    del variables
    return jnp.broadcast_to(jnp.asarray([0.0, 1.0, 0.5]), (images.shape[0], 3))


def _problem(seed, count=5):
    rng = np.random.default_rng(seed)
    variables = {
        "first": jnp.asarray(rng.normal(size=(30, 12)) / 60, jnp.float32),
        "second": jnp.asarray(rng.normal(size=(12, 3)), jnp.float32),
        "key": jax.random.key(seed),  # for attacks over draws, of which all are alike
    }
    images = jnp.asarray(rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8))
    labels = jnp.argmax(logits_fn(variables, images), -1)
    # One that is misclassified from the start.
    labels = labels.at[0].set((labels[0] + 1) % 3)
    keys = jax.random.split(jax.random.key(seed), count)
    return variables, images, labels, keys


def _attack(name, preset):
    all_of_them = preset in ("strong", "standard", "plus", "rand")
    fewer = FEWER.get(name, {}) if all_of_them else {}
    return functools.partial(attacks.named(name, preset), **fewer)


@functools.cache
def _compiled(name, preset):
    return jax.jit(functools.partial(_attack(name, preset), logits_fn))


@pytest.mark.parametrize("name, preset", ALL)
@hypothesis.given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
def test_levels_ball_and_outcome(name, preset, seed, share):
    variables, images, labels, keys = _problem(seed)
    norm = attacks.ATTACKS[name].norm
    eps = share * EPS[norm]
    found, info = _compiled(name, preset)(variables, images, labels, keys, eps=eps)
    assert found.dtype == jnp.uint8 and found.shape == images.shape
    moved = found.astype(jnp.float32) - images.astype(jnp.float32)
    sizes = SIZES[norm](moved)
    assert np.all(sizes <= eps * (1 + 1e-5))
    np.testing.assert_allclose(info.distance, sizes, rtol=1e-5)
    guesses = jnp.argmax(logits_fn(variables, found), -1)
    np.testing.assert_array_equal(info.success, guesses != labels)
    assert np.all(info.steps >= 0) and np.all(info.queries >= 1)
    assert info.steps.dtype == info.queries.dtype == jnp.int32
    options = attacks.ATTACKS[name].presets[preset]
    if not options.get("keep_failed"):
        failed = ~np.asarray(info.success)
        np.testing.assert_array_equal(found[failed], images[failed])


@pytest.mark.parametrize("name, preset", USUAL)
@pytest.mark.slow
def test_the_same_again_alone_and_in_another_order(name, preset, float64):
    variables, images, labels, keys = _problem(3)
    images = images.astype(jnp.float64)  # where sums do not depend on their order
    eps = EPS[attacks.ATTACKS[name].norm]
    run = functools.partial(_compiled(name, preset), eps=eps)
    found, info = run(variables, images, labels, keys)
    again, _ = run(variables, images, labels, keys)
    np.testing.assert_array_equal(found, again)
    turned, told = run(variables, images[::-1], labels[::-1], keys[::-1])
    np.testing.assert_array_equal(found[::-1], turned)
    np.testing.assert_array_equal(info.steps[::-1], told.steps)
    few, _ = run(variables, images[2:3], labels[2:3], keys[2:3])
    np.testing.assert_array_equal(found[2:3], few)


@pytest.mark.parametrize("name, preset", EACH)
def test_one_trace_serves_every_eps(name, preset):
    variables, images, labels, keys = _problem(4)
    run = _compiled(name, preset)
    full = EPS[attacks.ATTACKS[name].norm]
    distances, programs = [], []
    for eps in (0.0, 0.3 * full, full):
        _, info = run(variables, images, labels, keys, eps=eps)
        distances.append(float(np.max(info.distance)))
        programs.append(run._cache_size())
    assert programs[0] == programs[-1] and distances[0] == 0 < distances[2]


def _scaled(variables, images, factor):
    """Two classes, so that the log-odds are exactly proportional to the factor."""
    return factor * logits_fn(variables, images)[:, :2]


def _evade(logits_fn, variables, images, labels, key, **options):
    """`evade` of a detector that never rejects."""

    def pleased(variables, images):
        return jnp.zeros(len(images))

    return attacks.evade(
        logits_fn, pleased, variables, images, labels, threshold=-1.0, **options
    )


FOLLOW_SIGNS = {
    name: attacks.named(name) for name in ("fgsm", "bim", "pgd", "fgm", "pgd_l2")
} | {
    "pgd athalye": attacks.named("pgd", "athalye"),
    "fgsm code": attacks.named("fgsm", "code"),
    "evade": _evade,
}


@pytest.mark.parametrize("name", FOLLOW_SIGNS)
def test_confident_logits_are_attacked_as_others_are(name):
    # Cross-entropy's gradient rounds to nothing in float32 where the label leads by 16
    # nats; with a factor of 1024 nearly all of these lead by more.
    variables, images, _, keys = _problem(3, count=16)
    labels = jnp.argmax(_scaled(variables, images, 1), -1)
    found = {}
    for factor in (1, 8, 1024):
        network = functools.partial(_scaled, factor=factor)
        attack = jax.jit(functools.partial(FOLLOW_SIGNS[name], network))
        found[factor], info = attack(variables, images, labels, keys, eps=12.0)
        found[factor] = np.asarray(found[factor], int)
        assert np.mean(info.success) > 0.3
    differ = [np.mean(found[1] != found[factor]) for factor in (8, 1024)]
    # A power of two changes no digit; along a gradient its length is a sum.
    assert max(differ) == 0, differ


def test_the_direction_is_that_of_cross_entropy_in_float64():
    variables, images, _, _ = _problem(4, count=16)
    variables["first"] /= 16  # tanh must not be what loses the digits
    logits = logits_fn(variables, images)
    labels = jnp.argmax(logits, -1)
    # Every label leads by 24 nats: too much for float32, not for float64.
    factors = np.asarray(24 / outcome.margin(logits, labels))[:, None]

    def network(images):
        return factors.astype(images.dtype) * logits_fn(variables, images)

    floating = images.astype(jnp.float32)
    gradient, _ = gradients.log_odds_against(network, floating, labels)
    rounded = gradients.cross_entropy(network, floating, labels)[1]
    with jax.enable_x64(True):
        exact = gradients.cross_entropy(network, images.astype(jnp.float64), labels)[1]
    exact, ours = (np.asarray(a, float).reshape(16, -1) for a in (exact, gradient))
    sizes = np.linalg.norm(exact, axis=1) * np.linalg.norm(ours, axis=1)
    np.testing.assert_allclose(np.sum(ours * exact, 1) / sizes, 1, atol=1e-6)
    wrong = np.sign(np.asarray(rounded).reshape(16, -1)) != np.sign(exact)
    assert np.mean(wrong) > 0.1  # or the test would say nothing


@pytest.mark.parametrize("name, preset", USUAL)
@pytest.mark.slow
def test_nothing_but_the_image_where_the_classifier_never_changes(name, preset):
    _, images, _, keys = _problem(5)
    labels = jnp.ones(len(images), jnp.int32)
    clean = functools.partial(_attack(name, preset), constant, keep_failed=False)
    eps = EPS[attacks.ATTACKS[name].norm]
    found, info = jax.jit(clean)((), images, labels, keys, eps=eps)
    np.testing.assert_array_equal(found, images)
    assert not np.any(info.success) and np.all(info.distance == 0)


@pytest.mark.parametrize("name, preset", USUAL)
@pytest.mark.slow
def test_four_devices_make_the_images_of_one(name, preset):
    variables, images, labels, keys = _problem(6, count=8)
    eps = EPS[attacks.ATTACKS[name].norm]
    attack = functools.partial(_attack(name, preset), logits_fn, eps=eps)
    parts = jax.tree.map(
        lambda a: a.reshape(4, 2, *a.shape[1:]), (images, labels, keys)
    )
    spread, _ = jax.pmap(attack, in_axes=(None, 0, 0, 0))(variables, *parts)
    for device, rows in enumerate(spread):
        alone, _ = jax.jit(attack)(variables, *(part[device] for part in parts))
        np.testing.assert_array_equal(rows, alone)


BALLS = ["rand", "fgsm", "bim", "fgm", "pgd", "pgd_l2"]


@pytest.mark.parametrize("name", BALLS)
def test_a_ball_without_end_is_one_that_holds_every_image(name):
    variables, images, labels, keys = _problem(7)
    # A value that the network does not look at stays where it is.
    variables["first"] = variables["first"].at[3].set(0)
    run = jax.jit(functools.partial(attacks.named(name), logits_fn, keep_failed=True))
    found, info = run(variables, images, labels, keys, eps=jnp.inf)
    assert np.all(np.isfinite(info.distance)) and np.all(info.steps <= 500)
    if name in ("fgsm", "bim", "fgm"):
        np.testing.assert_array_equal(found[:, 0, 3], images[:, 0, 3])
    if name in ("fgsm", "rand"):
        wide, _ = run(variables, images, labels, keys, eps=255.0)
        np.testing.assert_array_equal(found, wide)


@pytest.mark.parametrize("name", BALLS[1:])
def test_slopes_and_logits_that_are_no_numbers_move_nothing(name):
    variables, images, labels, keys = _problem(8)

    def broken(variables, images):
        # The root has no slope at zero, though its value is a number.
        root = jnp.sqrt(jnp.sum(jnp.maximum(images - 300, 0) ** 2, (1, 2, 3)))
        return logits_fn(variables, images) + root[:, None]

    run = functools.partial(attacks.named(name), broken, random_start=False)
    if not name.startswith("pgd"):
        run = functools.partial(attacks.named(name), broken)
    else:
        run = functools.partial(run, restarts=1)
    found, _ = jax.jit(run)(variables, images, labels, keys, eps=8.0)
    np.testing.assert_array_equal(found, images)
    never = lambda v, x: logits_fn(v, x) * jnp.nan  # noqa: E731
    _, info = jax.jit(functools.partial(attacks.named(name), never))(
        variables, images, labels, keys, eps=8.0
    )
    assert not np.any(info.success) and np.all(info.distance <= 8.001)


def test_images_that_are_no_levels_are_refused():
    variables, images, labels, _ = _problem(9)
    units = images.astype(jnp.float32) / 255
    with pytest.raises(ValueError, match="these are 0..1, multiply by 255"):
        attacks.fgsm(logits_fn, variables, units, labels, eps=8 / 255)
    with pytest.raises(ValueError, match="0 to 255"):
        attacks.fgsm(logits_fn, variables, units - 1, labels, eps=8, quantise=False)
    attacks.fgsm(logits_fn, variables, units * 255, labels, eps=8, quantise=False)


def test_labels_and_sizes_may_be_lists_or_of_another_byte_order():
    variables, images, labels, _ = _problem(9)
    labels, eps = np.asarray(labels), np.arange(len(images)) + 1.0
    expected, _ = attacks.fgsm(logits_fn, variables, images, labels, eps=eps)
    for kind in (np.ndarray.tolist, lambda a: a.astype(a.dtype.newbyteorder(">"))):
        found, _ = attacks.fgsm(
            logits_fn, variables, images, kind(labels), eps=kind(eps)
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("eps", ["4", None, [None], "8/255", True])
def test_an_eps_that_is_no_number_is_refused(eps):
    variables, images, labels, _ = _problem(9)
    with pytest.raises(TypeError, match="eps must be a number of levels"):
        attacks.fgsm(logits_fn, variables, images, labels, eps=eps)


def test_names_and_presets_that_there_are_not_are_listed():
    with pytest.raises(ValueError, match="unknown attack 'x': one of rand, fgsm"):
        attacks.named("x")
    with pytest.raises(ValueError, match="fgsm has no preset 'y': one of paper, code"):
        attacks.named("fgsm", "y")
    assert attacks.usual("fgsm") == "paper"


def test_less_than_one_level_is_warned_of(rng):
    """As eps is of who has images from 0 to 1: no whole level is so near."""
    images = rng.integers(0, 256, (2, 4, 4, 1)).astype(np.float32)
    weights = rng.normal(size=(16, 3)).astype(np.float32)

    def logits_fn(weights, images):
        return images.reshape(len(images), -1) @ weights

    labels = np.argmax(logits_fn(weights, images), -1)
    with pytest.warns(UserWarning, match="less than one level .* for 8/255 give 8"):
        found, _ = attacks.fgsm(logits_fn, weights, images, labels, eps=8 / 255)
    np.testing.assert_array_equal(found, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for eps, quantise in ((8 / 255, False), (0.0, True), (1.0, True)):
            attacks.fgsm(logits_fn, weights, images, labels, eps=eps, quantise=quantise)
