"""Our attacks beside foolbox's, on the same network and in the same units."""

import functools
import json
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import bent, compiled, draw, sizes

from pixeldefend import attacks
from pixeldefend.attacks import norms

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox

# foolbox mixes types and ranks, which the suite forbids elsewhere.
pytestmark = [
    pytest.mark.filterwarnings("ignore:::foolbox"),
    pytest.mark.filterwarnings("ignore:::eagerpy"),
]


@pytest.fixture
def problem(rng):
    """Variables, floating images, labels."""
    variables, images, labels = draw(rng, 24)
    return variables, images.astype(jnp.float32), labels


def _found_by_foolbox(attack, problem, scale=1.0, **options):
    """Levels that the attack finds; its images have the range 255 / scale."""
    variables, images, labels = problem
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        model = foolbox.models.JAXModel(
            jax.jit(lambda x: bent(variables, scale * x)), bounds=(0, 255 / scale)
        )
        criterion = foolbox.criteria.Misclassification(labels)
        return scale * attack.run(model, images / scale, criterion, **options)


def _success(problem, found):
    variables, images, labels = problem
    black = np.all(np.asarray(found) == 0, (1, 2, 3))
    return np.asarray(jnp.argmax(bent(variables, found), -1) != labels) & ~black


@pytest.mark.parametrize("eps", [1.0, 7.5])
def test_fgsm_is_foolboxs(problem, eps):
    attack = foolbox.attacks.LinfFastGradientAttack()
    expected = _found_by_foolbox(attack, problem, epsilon=eps)
    found, _ = attacks.fgsm(bent, *problem, eps=eps, quantise=False, keep_failed=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    whole, _ = attacks.fgsm(bent, *problem, eps=eps, keep_failed=True)
    assert np.max(np.abs(np.asarray(whole, float) - expected)) <= 1


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm, eps", [("linf", 6.0), ("l2", 20.0)])
@pytest.mark.slow
def test_pgd_is_foolboxs(problem, norm, eps, random_start):
    images = problem[1]
    key = jax.random.split(jax.random.key(1), len(images))
    start = norms.named(norm).draw(key, images, jnp.full(len(images), eps))
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD

    class FromOurStart(kind):
        def get_random_start(self, x0, epsilon):
            return type(x0)(start)

    options = {"steps": 15, "random_start": random_start}
    expected = _found_by_foolbox(
        FromOurStart(rel_stepsize=0.1, **options), problem, epsilon=eps
    )
    run = compiled(
        attacks.pgd, norm=norm, relative_step=0.1, keep_failed=True, **options
    )
    found, _ = run(*problem, key, eps=eps)
    assert np.max(np.abs(np.asarray(found, float) - expected)) <= 1
    # It matters where it starts.
    other = compiled(
        attacks.pgd,
        norm=norm,
        relative_step=0.1,
        keep_failed=True,
        steps=15,
        random_start=not random_start,
    )
    elsewhere = np.asarray(other(*problem, key, eps=eps)[0], float)
    assert np.max(np.abs(elsewhere - np.asarray(expected))) > 1


def _no_worse(problem, norm, found, expected):
    """No fewer successes, and no farther where both succeed."""
    ours, theirs = _success(problem, found), _success(problem, expected)
    assert np.mean(ours) >= np.mean(theirs) > 0.8
    both = ours & theirs
    distance = np.median(sizes(found - problem[1], norm)[both])
    assert distance <= 1.05 * np.median(sizes(expected - problem[1], norm)[both])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_is_no_worse_than_foolboxs(problem, norm):
    kind = {
        "linf": foolbox.attacks.LinfDeepFoolAttack,
        "l2": foolbox.attacks.L2DeepFoolAttack,
    }[norm]
    expected = _found_by_foolbox(kind(), problem)
    found, _ = compiled(attacks.deepfool, norm=norm, quantise=False)(*problem)
    _no_worse(problem, norm, found, expected)


@pytest.mark.slow
def test_carlini_wagner_is_no_worse_than_foolboxs(problem):
    options = {"steps": 100, "initial_const": 1e-2}
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, stepsize=5e-2, **options
    )
    # Images of range 1, in whose units our constants are.
    expected = _found_by_foolbox(attack, problem, scale=255.0)
    ours = functools.partial(attacks.cw_l2, search_steps=6, step_size=5e-2, **options)
    found, _ = compiled(ours, quantise=False)(*problem)
    _no_worse(problem, "l2", found, expected)


@pytest.mark.slow
def test_the_benchmark_prints_its_ratios():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.attacks", "--weights=", "--images=3"]
        + ["--repeats=1", "--attacks=fgsm", "--attacks=deepfool"],
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["images"] == [3, 28, 28, 1]
    for name in ("fgsm", "deepfool"):
        assert found[name]["ratio"] > 0
        assert found[name]["ours_seconds"] > 0 and found[name]["foolbox_seconds"] > 0
    # The smallest perturbations are smaller than those of a fixed size.
    distance = "ours_median_distance"
    assert 0 < found["deepfool"][distance] < found["fgsm"][distance]
