"""One search without a ball serves every eps."""

import jax.numpy as jnp
import numpy as np
import pytest
from networks import bent, compiled, draw

from pixeldefend import attacks

OPTIONS = {
    "deepfool": ({}, "linf"),
    "deepfool_l2": ({"norm": "l2"}, "l2"),
    "cw": ({"steps": 20, "initial_const": 1e-2, "largest_const": 0.1}, "linf"),
    "cw_l2": ({"steps": 20, "search_steps": 2, "initial_const": 0.1}, "l2"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_cut_from_a_search_an_attack_is_what_it_would_have_been(name, rng, float64):
    options, norm = OPTIONS[name]
    variables, images, labels = draw(rng, 12, dtype="float64")
    labels = labels.at[3].set((labels[3] + 1) % 5)  # wrong to begin with
    attack = attacks.ATTACKS[name].function
    whole = compiled(attack, **options)
    search = compiled(attack, **options, eps=jnp.inf, quantise=False, keep_failed=True)
    found, _ = search(variables, images, labels)
    outcomes = set()
    for eps in (3.0, 12.0, 60.0):
        expected, info = whole(variables, images, labels, eps=eps)
        given, cut = attacks.cut(
            bent, variables, images, labels, found, eps=eps, norm=norm
        )
        np.testing.assert_array_equal(given, expected)
        np.testing.assert_array_equal(cut.success, info.success)
        np.testing.assert_allclose(cut.distance, info.distance)
        outcomes |= set(np.asarray(info.success).tolist())
    assert outcomes == {True, False}, "nothing was cut"


def test_exactly_the_attacks_that_end_with_a_cut_are_marked():
    marked = {name for name, known in attacks.ATTACKS.items() if known.cut}
    assert marked == set(OPTIONS)


def test_an_unknown_norm_is_told(rng):
    variables, images, labels = draw(rng, 2)
    with pytest.raises(ValueError, match="norm must be one of linf, l2"):
        attacks.cut(bent, variables, images, labels, images, eps=1, norm="l1")
