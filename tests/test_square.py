import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import bent, compiled, draw, sizes

from pixeldefend import attacks
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.square import bump, search_squares, square_sizes

NORMS = ("linf", "l2")
EPS = {"linf": 6.0, "l2": 30.0}
# Behind which square, counted from 0, the share is which part of the first one.
SHARES = {0: 1, 10: 2, 50: 4, 200: 8, 500: 16, 1000: 32, 2000: 64, 4000: 128}
SHARES |= {6000: 256, 8000: 512}


@functools.cache
def _run(**options):
    return compiled(attacks.square, **options)


def _shown(norm, image, eps, queries, lead=lambda shown: jnp.zeros(len(shown))):
    """All that a network was shown of one image, in order, before it is judged."""
    seen = []

    def network(variables, images):
        jax.debug.callback(
            lambda shown: seen.append(np.asarray(shown[0], float)), images, ordered=True
        )
        return jnp.stack([1 + lead(images), jnp.zeros(len(images))], 1)

    key = jax.random.split(jax.random.key(0), 1)
    label = jnp.asarray([0])
    options = {"eps": eps, "norm": norm, "queries": queries, "keep_failed": True}
    found, info = attacks.square(network, None, image[None], label, key, **options)
    jax.effects_barrier()
    assert info.queries[0] == len(seen) and not info.success[0]
    assert info.steps[0] == queries + 1
    return np.stack(seen[1:-1]), np.asarray(found[0], float)


def test_squares_shrink_as_autoattacks_do():
    # Nothing helps, so each square is what differs from the stripes.
    image = jnp.full((20, 24, 3), 100, jnp.uint8)
    shown, _ = _shown("linf", image, 9, 700)
    np.testing.assert_array_equal(np.unique(shown), [91, 109])
    stripes, squares = shown[0], shown[1:]
    assert np.all(stripes == stripes[:1]) and len(np.unique(stripes[0], axis=0)) > 2
    differs = np.any(squares != stripes, -1)
    rows, columns = np.any(differs, 2), np.any(differs, 1)

    def spans(axis):
        """From the first to the last place of each square."""
        last = axis.shape[1] - np.argmax(axis[:, ::-1], 1)
        return np.where(axis.any(1), last - np.argmax(axis, 1), 0)

    firsts = [*SHARES, 10000]
    for first, until in zip(firsts[:5], firsts[1:6], strict=True):
        # The first of the next share is the one after `until`.
        part = slice(first + (first > 0), min(until + 1, 700))
        size = round((0.8 / SHARES[first] * 20 * 24) ** 0.5)
        tall, wide = spans(rows)[part], spans(columns)[part]
        assert max(tall) == max(wide) == min(size, 20)
    colours = np.unique(squares[differs], axis=0)
    assert len(colours) == 8, "channels have signs of their own"
    # They are everywhere, also at the edges.
    assert np.all(np.any(differs, 0))


@pytest.mark.parametrize("norm", NORMS)
def test_sizes_are_those_of_the_shares(norm):
    found = square_sizes((32, 32), 0.8, norm)
    exact = [(0.8 / part * 32 * 32) ** 0.5 for part in SHARES.values()]
    if norm == "linf":
        expected = [max(round(size), 1) for size in exact]
    else:
        expected = [max(round(size), 3) for size in exact]
        expected = [size + (size % 2 == 0) for size in expected]
    np.testing.assert_array_equal(found, expected)
    assert square_sizes((4, 3), 1.0, norm)[0] == 3


def _naive_bump(size):
    """Section 3.3 of the paper, rectangle by rectangle."""

    def heap(rows):
        found = np.zeros((rows, size))
        for n in range(max(rows // 2, size // 2) + 1):
            for i in range(rows):
                for j in range(size):
                    if abs(i - rows // 2) <= n and abs(j - size // 2) <= n:
                        found[i, j] += 1 / (n + 1) ** 2
        return found / np.sqrt((found**2).sum()) if rows else found

    both = np.concatenate([heap(size // 2), -heap(size - size // 2)])
    return both / np.sqrt((both**2).sum())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12])
def test_bumps_are_heaps_of_rectangles(size):
    np.testing.assert_allclose(bump(size), _naive_bump(size), atol=1e-12)


@pytest.mark.slow
def test_tiles_and_bumps_fill_the_l2_ball():
    image = jnp.full((20, 20, 2), 128, jnp.uint8)
    shown, _ = _shown("l2", image, 300.0, 60)
    change = shown - 128
    size = sizes(change, "l2")
    assert np.all(size <= 300.003) and np.all(size > 295)
    tiles, squares = change[0], change[1:]
    # Four by four pixels, each a bump or its transpose of some sign in every channel.
    signs = set()
    for row in range(0, 20, 4):
        for column in range(0, 20, 4):
            for channel in range(2):
                tile = tiles[row : row + 4, column : column + 4, channel]
                tile = tile / np.linalg.norm(tile)
                likely = [(s, t) for s in (1, -1) for t in (False, True)]
                near = [
                    abs(tile - s * (bump(4).T if t else bump(4))).max()
                    for s, t in likely
                ]
                assert min(near) < 0.05
                signs.add(likely[np.argmin(near)])
    assert len(signs) == 4
    # Outside of two squares nothing changes but the length, later squares are smaller.
    kept = np.mean(np.abs(squares - tiles) < 1.5, (1, 2, 3))
    assert np.all(kept[11:50] > 0.1) and np.all(kept[52:] > 0.4)
    assert len(np.unique(kept)) > 10


@pytest.mark.parametrize("norm", NORMS)
def test_the_best_of_all_that_was_shown_is_kept(norm):
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.integers(0, 256, (6, 6, 2), dtype=np.uint8))
    slope = jnp.asarray(rng.normal(size=(1, 6, 6, 2)) / 1e4, jnp.float32)
    lead = lambda shown: jnp.sum(slope * shown, (1, 2, 3))  # noqa: E731
    shown, found = _shown(norm, image, EPS[norm], 40, lead)
    leads = np.asarray(lead(jnp.asarray(shown, jnp.float32)))
    np.testing.assert_array_equal(found, shown[np.argmin(leads)])
    assert np.argmin(leads) > 5
    assert np.all(sizes(shown - np.asarray(image, float), norm) <= EPS[norm] + 1e-4)
    assert shown.min() >= 0 and shown.max() <= 255


@pytest.mark.parametrize("norm", NORMS)
def test_a_success_ends_it_and_is_one(norm, rng):
    variables, images, labels = draw(rng, 12)
    keys = jax.random.split(jax.random.key(2), 12)
    labels = labels.at[0].set((labels[0] + 1) % 5)  # wrong to begin with
    run = _run(norm=norm, queries=100)
    found, info = run(variables, images, labels, keys, eps=EPS[norm])
    success = np.asarray(info.success)
    assert found.dtype == jnp.uint8 and 0.2 < np.mean(success) < 1
    fooled = np.asarray(jnp.argmax(bent(variables, found), -1) != labels)
    np.testing.assert_array_equal(success, fooled)
    change = np.asarray(found, float) - np.asarray(images, float)
    assert np.all(sizes(change, norm) <= EPS[norm] * (1 + 1e-5))
    np.testing.assert_array_equal(found[0], images[0])
    assert info.steps[0] == 0 and info.queries[0] == 2
    np.testing.assert_array_equal(info.queries, info.steps + 2)
    assert np.all(info.steps[~success] == 101)
    assert len(set(np.asarray(info.steps)[success].tolist())) > 2
    # Each eps is data.
    _, more = run(variables, images, labels, keys, eps=jnp.full(12, 2 * EPS[norm]))
    assert np.mean(more.success) > np.mean(success)
    _, none = run(variables, images, labels, keys, eps=jnp.zeros(12))
    assert not np.any(none.success[1:])


def test_fractional_balls_and_levels(rng):
    variables, images, labels = draw(rng, 8)
    keys = jax.random.split(jax.random.key(2), 8)
    options = {"queries": 50, "keep_failed": True}
    whole, _ = _run(**options)(variables, images, labels, keys, eps=6.5)
    floor, _ = _run(**options)(variables, images, labels, keys, eps=6.0)
    np.testing.assert_array_equal(whole, floor)
    exact, info = _run(quantise=False, **options)(
        variables, images, labels, keys, eps=6.5
    )
    assert exact.dtype == jnp.float32
    np.testing.assert_allclose(info.distance, 6.5)


def test_restarts_go_on_where_none_fooled(rng):
    variables, images, labels = draw(rng, 16)
    keys = jax.random.split(jax.random.key(4), 16)
    once = _run(queries=4)(variables, images, labels, keys, eps=4.0)[1]
    many = _run(queries=4, restarts=20)(variables, images, labels, keys, eps=4.0)[1]
    assert np.all(many.success >= once.success)
    assert np.mean(many.success) > np.mean(once.success)
    assert np.all(many.steps[~np.asarray(many.success)] == 100)
    later = np.asarray(many.success & ~once.success)
    assert np.all(many.steps[later] > 5)


@pytest.mark.slow
def test_two_classes_and_no_slope_are_enough(rng):
    variables, images, labels = draw(rng, 8, classes=2)

    def coarse(variables, images):
        return jnp.round(4 * bent(variables, images))

    keys = jax.random.split(jax.random.key(0), 8)
    labels = jnp.argmax(coarse(variables, images), -1)
    task = variables, images, labels, keys
    _, info = attacks.square(coarse, *task, eps=40, queries=60)
    _, blind = attacks.pgd(coarse, *task, eps=40, steps=5)
    assert np.mean(info.success) > 0.5 > np.mean(blind.success)


@pytest.mark.slow
def test_images_that_are_done_cost_nothing(rng):
    variables, images, labels = draw(rng, 6)
    network = functools.partial(bent, variables)
    task = outcome.prepare(network, images, labels, 40.0, True)
    done = jnp.asarray([True, False] * 3)
    keys = jax.random.split(jax.random.key(0), 6)
    found = search_squares(network, norms.L2, task, keys, done, queries=30)
    np.testing.assert_array_equal(found.levels[::2], images[::2].astype(jnp.float32))
    assert np.all(found.steps[::2] == 0) and np.all(found.queries[::2] == 0)
    assert not np.any(found.success[::2]) and np.all(found.queries[1::2] > 0)
    surely = outcome.is_surely_fooled(network(found.levels), labels)
    np.testing.assert_array_equal(found.success[1::2], surely[1::2])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.slow
def test_neither_lanes_nor_the_batch_change_an_image(norm, rng, float64):
    # In float32 the last step depends on the order of sums.
    variables, images, labels = draw(rng, 12, dtype="float64")
    images = images.astype(jnp.float64)
    keys = jax.random.split(jax.random.key(2), 12)
    task = variables, images, labels, keys
    options = {"norm": norm, "queries": 100, "restarts": 2}
    expected, reference = _run(**options)(*task, eps=EPS[norm])
    assert len(set(reference.steps.tolist())) > 3
    for lanes in (1, 5):
        found, info = _run(lanes=lanes, **options)(*task, eps=EPS[norm])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(info.steps, reference.steps)
    part = (a[4:6] for a in task[1:])
    found, _ = _run(**options)(variables, *part, eps=EPS[norm])
    np.testing.assert_array_equal(found, expected[4:6])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "l1"}, "norm must be one of linf, l2: 'l1'"),
        ({"queries": 0}, "queries must be at least 1: 0"),
        ({"restarts": 0}, "restarts must be at least 1: 0"),
        ({"initial_share": 1.5}, "initial_share must be above 0 and at most 1: 1.5"),
        ({"initial_share": 0}, "initial_share must be above 0 and at most 1: 0"),
        ({"key": None}, "needs keys"),
        ({"eps": -1}, "eps must be a number and not negative"),
    ],
)
def test_mistakes_are_told(rng, options, message):
    given = {"eps": 1, "key": jax.random.split(jax.random.key(0), 2)} | options
    with pytest.raises(ValueError, match=message):
        attacks.square(bent, *draw(rng, 2), **given)
