import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from pixeldefend import attacks
from pixeldefend.experiment import (
    augmentation,
    classifier_training,
    data,
    parallel,
    schedule,
    train,
)
from pixeldefend.models import classifiers

SHAPE = (8, 8, 1)


class Tiny(nn.Module):
    """Batch norm and dropout, and compiled in a second."""

    classes: int = 10
    dropout: float = 0.5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (3, 3), (2, 2))(classifiers.standardise(images))
        x = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, axis_name=self.axis_name
        )(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


MODEL = Tiny()
KINDS = [
    ("normal", "paper"),
    ("label_smoothing", "paper"),
    ("adversarial_fgsm", "paper"),
    ("adversarial_bim", "paper"),
    ("adversarial_bim", "code"),
]
PLAN = schedule.Plan(
    batch=16,
    steps=8,
    learning_rate=0.05,
    warmup=1,
    polyak=0.0,
    log_every=2,
    eval_every=4,
    checkpoint_minutes=0.0,
)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, 64).astype(np.int32)
    images = rng.integers(0, 200, (64, *SHAPE)) + 5 * labels[:, None, None, None]
    return {"images": images.astype(np.uint8), "labels": labels}


@functools.cache
def _variables(model=MODEL):
    init = jax.jit(functools.partial(classifiers.init, model))
    # On the host, since a step donates what it is given.
    return jax.device_get(init(jax.random.key(0), jnp.zeros((2, *SHAPE), jnp.uint8)))


def _state(variables, optimizer):
    state = {k: tree for k, tree in variables.items() if k != "params"}
    averaged = classifier_training.variables
    return train.start(variables["params"], state, optimizer, averaged)


class Killed(Exception):
    pass


@pytest.mark.parametrize("training, preset", KINDS)
@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_weights(
    training, preset, arrays, tmp_path, monkeypatch
):
    recipe = classifier_training.Recipe(training=training, preset=preset, delta=3.0)
    optimizer = train.sgd(PLAN)
    loss = classifier_training.loss_fn(MODEL, recipe)
    step = train.make_step(loss, optimizer, PLAN.polyak, classifier_training.variables)
    mapped = parallel.map_step(train.several(step, 1))
    # One compiled program for all three runs.
    monkeypatch.setattr(parallel, "map_step", lambda step, most: mapped)

    def fit(folder):
        lines = []
        state, _ = train.fit(
            _state(_variables(), optimizer),
            lambda: None,
            arrays,
            PLAN,
            folder,
            lambda state: {},
            lines.append,
        )
        return state, lines

    whole, _ = fit(tmp_path / "whole")
    rates = schedule.Clock.rates

    def dies(self, done, count):
        if done == 5:
            raise Killed
        return rates(self, done, count)

    monkeypatch.setattr(schedule.Clock, "rates", dies)
    with pytest.raises(Killed):
        fit(tmp_path / "halves")
    monkeypatch.setattr(schedule.Clock, "rates", rates)
    resumed, lines = fit(tmp_path / "halves")
    assert lines[0]["step"] == 6, "nothing was resumed"
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    for before, after in zip(
        jax.tree.leaves(_variables()["params"]),
        jax.tree.leaves(resumed.params),
        strict=True,
    ):
        assert np.any(before != after)


def test_batch_norm_on_four_devices_equals_one(arrays):
    model = dataclasses.replace(MODEL, dropout=0.0)
    recipe = classifier_training.Recipe(flip=False)
    optimizer = train.sgd(PLAN)
    step = train.make_step(
        classifier_training.loss_fn(model, recipe),
        optimizer,
        PLAN.polyak,
        classifier_training.variables,
    )
    # One device: an axis of length one.
    axes = (None, 0, None, None, None)
    one = jax.jit(jax.vmap(step, axes, None, axis_name=parallel.AXIS))
    many = parallel.map_step(train.several(step, 1))
    placed = parallel.on_every_device(arrays)
    assert jax.local_device_count() == 4
    states = [_state(_variables(), optimizer) for _ in range(2)]
    key = jax.random.key(0)
    for i in range(3):
        batch = {name: rows[i * 16 : (i + 1) * 16] for name, rows in arrays.items()}
        single = {name: rows[None] for name, rows in batch.items()}
        states[0], metrics = one(
            states[0], single, key, jnp.float32(0.05), jnp.zeros(1)
        )
        rows = np.arange(i * 16, (i + 1) * 16)[None]
        states[1], others = many(states[1], placed, rows, [0.05], key)
        assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), rel=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, states[0].params, states[1].params)
    jax.tree.map(close, states[0].model_state, states[1].model_state)
    # The statistics are those of the whole batch, not the mean of the devices' own.
    assert np.any(
        np.abs(
            states[1].model_state["batch_stats"]["BatchNorm_0"]["var"]
            - _variables()["batch_stats"]["BatchNorm_0"]["var"]
        )
        > 1e-3
    )


@pytest.mark.parametrize(
    "model",
    [classifiers.ResNet(variant="code"), classifiers.VGG(divisor=16)],
    ids=["resnet", "vgg"],
)
@pytest.mark.slow
def test_classifiers_take_their_statistics_over_all_devices(model, arrays):
    model = model.clone(dropout=0.0) if hasattr(model, "dropout") else model
    images = arrays["images"][:16]
    init = jax.jit(functools.partial(classifiers.init, model))
    variables = init(jax.random.key(0), images)

    def logits(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    synchronised = functools.partial(logits, model.clone(axis_name="parts"))
    parts = images.reshape(4, 4, *SHAPE)
    found, state = jax.jit(jax.vmap(synchronised, axis_name="parts"))(parts)
    expected, whole = jax.jit(functools.partial(logits, model))(images)
    np.testing.assert_allclose(found.reshape(16, 10), expected, atol=2e-3)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(lambda one, other: close(one[3], other), state, whole)


def test_a_classifier_learns(arrays, tmp_path):
    images, labels = data.sample("fashion_mnist")
    few = {"images": images[:64, ::2, ::2], "labels": labels[:64]}
    model = classifiers.CNN(divisor=4)
    recipe = classifier_training.Recipe(flip=False)
    plan = dataclasses.replace(PLAN, batch=32, steps=60)
    optimizer = train.sgd(plan)
    init = jax.jit(functools.partial(classifiers.init, model))
    first = _state(init(jax.random.key(0), few["images"]), optimizer)
    loss = classifier_training.loss_fn(model, recipe)
    step = train.make_step(loss, optimizer, 0.5, classifier_training.variables)
    scores = classifier_training.evaluation(model, recipe, few, 32)
    _, line = train.fit(first, step, few, plan, tmp_path, scores, lambda line: None)
    assert line["validation_accuracy"] > 0.9


def test_label_smoothing_leaves_the_right_class_nine_tenths():
    recipe = classifier_training.Recipe(training="label_smoothing")
    found = classifier_training.targets(recipe, jnp.asarray([2, 0]), 10)
    assert found[0, 2] == pytest.approx(0.9) and found[1, 0] == pytest.approx(0.9)
    np.testing.assert_allclose(found[0, 3:], 0.1 / 9, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(found, 1), 1, rtol=1e-6)
    hard = classifier_training.targets(
        classifier_training.Recipe(), jnp.asarray([2, 0]), 10
    )
    np.testing.assert_array_equal(hard, np.eye(10)[[2, 0]])


@pytest.mark.parametrize("delta", [8.0, 25.0])
def test_eps_is_a_half_normal_cut_at_twice_its_scale(delta):
    eps = np.asarray(classifier_training.drawn_eps(jax.random.key(1), 20_000, delta))
    assert eps.min() >= 0 and eps.max() <= 2 * delta and eps.max() > 1.9 * delta
    assert np.all(np.diff(eps) >= 0)
    known = stats.truncnorm(0, 2, scale=delta)
    assert stats.kstest(eps, known.cdf).pvalue > 0.01


def _attacked(recipe, labels, arrays, key=3):
    run = jax.jit(functools.partial(classifier_training.attacked, MODEL, recipe))
    images = arrays["images"][:16]
    return np.asarray(run(_variables(), images, labels, jax.random.key(key))), images


@pytest.mark.parametrize("training, preset", KINDS[2:])
def test_true_labels_leak_only_where_the_authors_code_lets_them(
    training, preset, arrays
):
    recipe = classifier_training.Recipe(training=training, preset=preset)
    labels = jnp.asarray(arrays["labels"][:16])
    found, _ = _attacked(recipe, labels, arrays)
    other, _ = _attacked(recipe, (labels + 1) % 10, arrays)
    leaks = training == "adversarial_bim" and preset == "code"
    assert np.any(found != other) == leaks


@pytest.mark.parametrize("training, preset", KINDS[2:])
def test_attacked_images_stay_in_their_balls(training, preset, arrays):
    recipe = classifier_training.Recipe(training=training, preset=preset)
    labels = jnp.asarray(arrays["labels"][:16])
    found, images = _attacked(recipe, labels, arrays)
    moved = np.abs(found - images).max((1, 2, 3))
    eps = np.asarray(classifier_training.drawn_eps(jax.random.key(3), 16, 8.0))
    steps = np.floor(np.minimum(eps + 4, 1.25 * eps))
    if preset == "code":  # it forgets the ball
        assert np.all(moved <= steps + 1e-4) and np.any(moved > eps + 0.5)
    else:
        assert np.all(moved <= eps + 1e-4)
    assert np.mean(moved) > 1 and found.min() >= 0 and found.max() <= 255


def test_the_attack_sees_the_model_in_inference_mode(arrays):
    recipe = classifier_training.Recipe(training="adversarial_fgsm")
    labels = jnp.asarray(arrays["labels"][:16])
    found, images = _attacked(recipe, labels, arrays)
    eps = classifier_training.drawn_eps(jax.random.key(3), 16, recipe.delta)
    logits_fn = functools.partial(classifiers.logits, MODEL)
    expected, _ = attacks.fgsm(
        logits_fn,
        _variables(),
        images,
        None,
        eps=eps,
        quantise=False,
        keep_failed=True,
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_half_of_a_batch_is_attacked_and_weighs_three_tenths(arrays, monkeypatch):
    recipe = classifier_training.Recipe(
        training="adversarial_fgsm", flip=False, weight_decay=0.5
    )
    model = dataclasses.replace(MODEL, dropout=0.0)
    batch = {name: jnp.asarray(rows[:8]) for name, rows in arrays.items()}
    variables = _variables()
    state = {"batch_stats": variables["batch_stats"]}
    seen = {}

    def moved(model, recipe, variables, images, labels, key):
        seen["images"] = images
        return 255.0 - images.astype(jnp.float32)

    monkeypatch.setattr(classifier_training, "attacked", moved)
    loss = classifier_training.loss_fn(model, recipe)

    def whole(params):
        value, (_, metrics) = loss(params, state, batch, jax.random.key(0))
        return value, metrics

    mapped = jax.vmap(lambda _: whole(variables["params"]), axis_name=parallel.AXIS)
    value, metrics = jax.tree.map(lambda a: float(a[0]), mapped(jnp.zeros(1)))
    np.testing.assert_array_equal(seen["images"], batch["images"][4:])
    images = batch["images"].astype(jnp.float32)
    mixed = jnp.concatenate([images[:4], 255 - images[4:]])
    logits, _ = model.apply(variables, mixed, train=True, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    expected = (losses[:4].mean() + 0.3 * losses[4:].mean()) / 1.3
    assert metrics["cross_entropy"] == pytest.approx(float(expected), rel=1e-4)
    squares = sum(float(jnp.sum(a**2)) for a in jax.tree.leaves(variables["params"]))
    assert value == pytest.approx(float(expected) + 0.5 * squares / 2, rel=1e-4)


def test_no_gradient_flows_through_the_attack(arrays):
    """Were it differentiated, its loop of unknown length would raise an error."""
    recipe = classifier_training.Recipe(training="adversarial_bim", flip=False)
    labels = jnp.asarray(arrays["labels"][:4])

    def total(variables):
        fixed = jax.lax.stop_gradient(variables)
        return jnp.sum(
            classifier_training.attacked(
                MODEL, recipe, fixed, arrays["images"][:4], labels, jax.random.key(0)
            )
        )

    slopes = jax.jit(jax.grad(total))(_variables())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))


def test_the_average_has_the_statistics_that_belong_to_its_weights(arrays):
    """Twice the same step, by optax and by hand."""
    recipe = classifier_training.Recipe(flip=False)
    optimizer = train.sgd(PLAN)
    averaged = classifier_training.variables
    loss = classifier_training.loss_fn(MODEL, recipe)
    step = train.make_step(loss, optimizer, 0.9, averaged)
    run = parallel.map_step(train.several(step, 1))
    state = _state(_variables(), optimizer)
    expected = jax.tree.map(np.array, state.average)  # a step donates its state
    placed = parallel.on_every_device(arrays)
    for i in range(3):
        rows = np.arange(i * 16, (i + 1) * 16)[None]
        state, _ = run(state, placed, rows, [0.05], jax.random.key(0))
        now, decay = averaged(state.params, state.model_state), (1 + i) / (10 + i)
        expected = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * np.array(new), expected, now
        )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, state.average, expected)
    statistics = state.average["batch_stats"]["BatchNorm_0"]["var"]
    assert np.any(statistics != state.model_state["batch_stats"]["BatchNorm_0"]["var"])


def test_crops_reach_the_network(arrays, monkeypatch):
    seen = []

    def moved(images, key, most):
        seen.append(most)
        return images[:, ::-1]

    monkeypatch.setattr(augmentation, "cropped", moved)
    losses = []
    for crop in (0, 3):
        recipe = classifier_training.Recipe(flip=False, crop=crop, weight_decay=0.0)
        loss = classifier_training.loss_fn(MODEL, recipe)
        batch = {name: jnp.asarray(rows[:8]) for name, rows in arrays.items()}
        state = {"batch_stats": _variables()["batch_stats"]}
        mapped = jax.vmap(
            lambda _, loss=loss, batch=batch, state=state: loss(
                _variables()["params"], state, batch, jax.random.key(0)
            )[0],
            axis_name=parallel.AXIS,
        )
        losses.append(float(mapped(jnp.zeros(1))[0]))
    assert seen == [3] and losses[0] != losses[1]


def test_evaluation_reports_the_training_attack_too(arrays):
    held_out = {name: rows[:24] for name, rows in arrays.items()}
    state = _state(_variables(), train.sgd(PLAN))
    names = {}
    for training in ("normal", "adversarial_fgsm"):
        recipe = classifier_training.Recipe(training=training)
        names[training] = classifier_training.evaluation(MODEL, recipe, held_out, 16)(
            state
        )
    clean = np.asarray(
        jnp.argmax(classifiers.logits(MODEL, _variables(), held_out["images"]), -1)
    )
    right = float(np.mean(clean == held_out["labels"]))
    assert names["normal"] == {"validation_accuracy": right}
    assert names["adversarial_fgsm"]["validation_accuracy"] == right
    assert "validation_accuracy_attacked" in names["adversarial_fgsm"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"training": "distillation"}, "training must be one of normal"),
        ({"preset": "strong"}, "preset must be one of paper, code"),
        ({"delta": 0.0}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"crop": 2.5}, "crop must be"),
        ({"crop": -1}, "crop must be"),
    ],
)
def test_contradictory_recipes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        classifier_training.Recipe(**fields)
