import dataclasses
import json
import struct
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixeldefend.experiment import (
    interruption,
    metrics,
    schedule,
    train,
)

PLAN = schedule.Plan(
    batch=8,
    steps=12,
    learning_rate=0.1,
    warmup=3,
    polyak=0.9,
    log_every=2,
    eval_every=6,
    checkpoint_minutes=0.0,
    seed=3,
)


def _loss(params, state, batch, key):
    noise = jax.random.normal(key, batch["images"].shape)
    error = batch["images"] + 0.1 * noise - params["mean"][None]
    count = state["count"] + 1.0
    return jnp.mean(error**2), ({"count": count}, {"error": jnp.mean(jnp.abs(error))})


def _fit(workdir, plan=PLAN, loss=_loss, arrays=None):
    rng = np.random.default_rng(0)
    if arrays is None:
        arrays = {"images": rng.normal(size=(40, 5)).astype(np.float32) + 2}
    optimizer = train.adam(plan)
    params = {"mean": jnp.zeros(5)}
    lines = []
    state, line = train.fit(
        train.start(params, {"count": jnp.zeros(())}, optimizer),
        train.make_step(loss, optimizer, plan.polyak),
        arrays,
        plan,
        workdir,
        lambda state: {"validation": float(state.average["mean"][0])},
        lines.append,
    )
    return state, line, lines


@pytest.fixture(autouse=True)
def optax_promotes():
    """optax itself mixes an integer count with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Killed(Exception):
    pass


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    steps_per_call, tmp_path, monkeypatch
):
    plan = dataclasses.replace(PLAN, steps_per_call=steps_per_call)
    whole, _, _ = _fit(tmp_path / "whole", plan)
    rates = schedule.Clock.rates

    def dies(self, done, count):
        if done >= 7:
            raise Killed
        return rates(self, done, count)

    monkeypatch.setattr(schedule.Clock, "rates", dies)
    with pytest.raises(Killed):
        _fit(tmp_path / "halves", plan)
    monkeypatch.undo()
    resumed, line, lines = _fit(tmp_path / "halves", plan)
    # Single steps: the seventh was lost; calls end with the lines, as checkpoints do.
    assert lines[0]["step"] == (8 if steps_per_call == 1 else 10)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    both = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        for name in ("whole", "halves")
    ]
    for texts in zip(*both, strict=True):
        first, second = map(json.loads, texts)
        for name in ("step", "loss", "error", "learning_rate"):
            assert first[name] == second[name]


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_wish_to_stop_leaves_no_trace_in_the_metrics(
    steps_per_call, tmp_path, monkeypatch
):
    """Neither a line of its own nor averages over what is left of the steps."""
    plan = dataclasses.replace(
        PLAN, steps=20, log_every=9, eval_every=18, steps_per_call=steps_per_call
    )
    _fit(tmp_path / "whole", plan)
    rates, begun = schedule.Clock.rates, []

    def watched(self, done, count):
        begun.append(done)
        return rates(self, done, count)

    monkeypatch.setattr(schedule.Clock, "rates", watched)
    for stop in (1, 6, 12):
        monkeypatch.setattr(
            interruption, "wanted", lambda stop=stop: begun and begun[-1] >= stop
        )
        with pytest.raises(interruption.Interrupted):
            _fit(tmp_path / "halves", plan)
    monkeypatch.undo()
    state, _, _ = _fit(tmp_path / "halves", plan)
    assert int(state.step) == 20 and len(begun) < 20
    whole, halves = (
        [
            json.loads(text)
            for text in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "halves")
    )
    for line in (*whole, *halves):
        del line["seconds"], line["images_per_second"]
    assert halves == whole and [line["step"] for line in whole] == [9, 18, 20]


def test_a_finished_run_is_not_trained_further(tmp_path):
    first, line, _ = _fit(tmp_path)
    again, same, lines = _fit(tmp_path)
    assert lines == [] and same == line
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_four_devices_train_as_one_does(steps_per_call, tmp_path):
    def quiet(params, state, batch, key):
        error = batch["images"] - params["mean"][None]
        return jnp.mean(error**2), (state, {})

    plan = dataclasses.replace(PLAN, steps_per_call=steps_per_call)
    state, _, _ = _fit(tmp_path, plan, quiet)
    # The same mathematics with optax alone, on the whole batch.

    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 5)).astype(np.float32) + 2
    optimizer = optax.scale_by_adam(b1=0.95, b2=0.9995, eps=0.0, eps_root=1e-8)
    mean = average = jnp.zeros(5)
    moments = optimizer.init(mean)
    rows = schedule.Batches(40, PLAN.batch, PLAN.seed).from_step(0)
    for step in range(PLAN.steps):
        batch = images[next(rows)]
        gradient = jax.grad(lambda m, b=batch: jnp.mean((b - m[None]) ** 2))(mean)
        update, moments = optimizer.update(gradient, moments)
        mean = mean - PLAN.rate(step, step / PLAN.steps) * update
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * mean
    np.testing.assert_allclose(state.params["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(state.average["mean"], average, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def explodes(params, state, batch, key):
        loss, rest = _loss(params, state, batch, key)
        return jnp.where(state["count"] > 4, jnp.nan, loss), rest

    with pytest.raises(metrics.NonFiniteLossError, match="nan at step 6"):
        _fit(tmp_path, loss=explodes)
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(kept) == 4


def test_a_gradient_that_is_not_finite_is_not_kept(tmp_path):
    def kinked(params, state, batch, key):
        loss, (state, metrics) = _loss(params, state, batch, key)
        # Nothing is added to the loss, but its slope overflows from the fifth step on.
        mean = params["mean"][0]
        slope = jnp.where(state["count"] > 4, 3e38, 0.0)
        return loss + slope * (mean - jax.lax.stop_gradient(mean)), (state, metrics)

    with pytest.raises(metrics.NonFiniteLossError, match="gradient_norm"):
        _fit(tmp_path, dataclasses.replace(PLAN, log_every=1), kinked)


def test_evaluations_need_no_common_multiple_with_the_log(tmp_path):
    plan = dataclasses.replace(PLAN, log_every=5, eval_every=4)
    _, _, lines = _fit(tmp_path, plan)
    assert [line["step"] for line in lines] == [4, 5, 8, 10, 12]
    assert [line["step"] for line in lines if "validation" in line] == [4, 8, 12]


def test_schedules():
    anneal = dataclasses.replace(PLAN, steps=100, warmup=9)
    rates = [anneal.rate(step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.01) and rates[100] == pytest.approx(0, abs=1e-9)
    assert max(rates) < 0.1 and np.argmax(rates) == 9
    assert all(np.diff(rates[9:]) < 0)
    paper = schedule.Plan(batch=1, steps=10, schedule="paper", learning_rate=1e-3)
    assert paper.rate(100_000, 0.5) == pytest.approx(1e-3 * 0.999995**100_000)
    drops = dataclasses.replace(paper, learning_rate=0.1, decay=1.0, drops=(40, 60))
    rates = [drops.rate(step, 0.5) for step in (0, 39, 40, 59, 60, 79)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_however_steps_are_divided_into_calls_the_bits_are_the_same(tmp_path):
    found = [
        _fit(tmp_path / str(log), dataclasses.replace(PLAN, steps_per_call=12, **logs))
        for log, logs in enumerate(
            ({"log_every": 12, "eval_every": 12}, {"log_every": 5, "eval_every": 4})
        )
    ]
    assert [len(lines) for _, _, lines in found] == [1, 5]
    jax.tree.map(np.testing.assert_array_equal, found[0][0], found[1][0])
    # The metrics of a line are means over its steps, whatever calls these were in.
    steps = np.diff([0, *(line["step"] for line in found[1][2])])
    means = [line["loss"] for line in found[1][2]]
    assert np.average(means, weights=steps) == pytest.approx(found[0][1]["loss"])
    for line in found[1][2]:
        last = line["step"] - 1
        assert line["learning_rate"] == PLAN.rate(last, last / PLAN.steps)


BOX = dataclasses.replace(PLAN, steps=0, hours=2 / 3600)


@pytest.mark.parametrize("steps_per_call", [1, 20])
def test_hours_end_a_run_by_the_clock(steps_per_call, tmp_path):
    # However busy the machine, the first step is one of a run without a warm-up.
    plan = dataclasses.replace(BOX, steps_per_call=steps_per_call, warmup=0)
    _, line, lines = _fit(tmp_path, plan)
    assert lines[-1] == line and (line["progress"] == 1 or line["step"] == 1)
    _, again, more = _fit(tmp_path, plan)
    assert more == [] and again["step"] == line["step"]


class Clockwork:
    """A clock that only moves when it is told to."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clockwork(monkeypatch):
    clock = Clockwork()
    monkeypatch.setattr(schedule.time, "monotonic", clock.monotonic)
    return clock


def _called(clock, clockwork, seconds, count, done):
    """What `fit` does around a call that takes so many seconds."""
    rates = clock.rates(done, count)
    told = clock.told()
    clockwork.now += seconds
    clock.heard(np.array([0.0, told]), count)
    return rates


def test_a_time_box_counts_compiling_and_anneals_from_the_first_step(clockwork):
    plan = dataclasses.replace(BOX, hours=120 / 3600, warmup=0, steps_per_call=50)
    plan = dataclasses.replace(plan, log_every=1000)
    clock = schedule.Clock(plan, begun=90.0)  # 10 s before: reading, first weights

    def evaluate(state):
        clockwork.now += 4.0

    clock.reserve_for(evaluate, None)  # once to compile, once for the time
    assert clock.steps(0) == 1
    _called(clock, clockwork, 40.0, 1, 0)
    assert clock.compiled == pytest.approx(58.0)
    assert clock.steps(1) == 1, "the first call says nothing of a step's time"
    (highest,) = _called(clock, clockwork, 0.5, 1, 1)
    assert highest == pytest.approx(PLAN.learning_rate)
    done, rates = 2, []
    while count := clock.steps(done):
        rates += list(_called(clock, clockwork, 0.5 * count, count, done))
        done += count
    # 120 s without the validation's 4 and 2 for writing.
    assert clock.seconds == pytest.approx(114.0, abs=0.5)
    assert done == pytest.approx(1 + (114 - 58) / 0.5, abs=1)
    expected = (
        PLAN.learning_rate
        / 2
        * (1 + np.cos(np.pi * np.arange(1, done - 1) / (done - 1)))
    )
    np.testing.assert_allclose(rates, expected, atol=2e-3 * PLAN.learning_rate)
    assert rates[-1] < 1e-3 * PLAN.learning_rate


def test_a_box_that_ends_within_the_warmup_is_a_mistake(tmp_path, monkeypatch):
    plan = dataclasses.replace(BOX, hours=1e-7)
    for _ in range(2):  # started again it is one still
        with pytest.raises(
            schedule.UnfinishedWarmupError, match="of the 3 steps of the warm-up"
        ):
            _fit(tmp_path, plan)


def test_a_run_that_was_stopped_goes_on_from_its_rate_to_zero(clockwork):
    plan = dataclasses.replace(BOX, hours=100 / 3600, warmup=0)
    first = schedule.Clock(plan, begun=clockwork.now)
    _called(first, clockwork, 20.0, 1, 0)  # compiled
    for done in range(1, 31):
        _called(first, clockwork, 1.0, 1, done)
    kept = first.kept(31)
    assert kept == {"seconds": pytest.approx(50.0), "share": pytest.approx(30 / 80)}
    clockwork.now += 1000  # another day
    second = schedule.Clock(plan, begun=clockwork.now)
    second.restore(kept)
    (rate,) = _called(second, clockwork, 20.0, 1, 31)  # compiled again
    assert rate == pytest.approx(plan.rate(31, 30 / 80))
    done, rates = 32, []
    while count := second.steps(done):
        rates += list(_called(second, clockwork, 1.0, count, done))
        done += count
    assert second.seconds == pytest.approx(100, abs=1)
    assert rates[0] == pytest.approx(plan.rate(32, 30 / 80))
    assert np.all(np.diff(rates) < 0) and rates[-1] < 0.01 * plan.learning_rate
    assert second.progress(done, last=True) == 1


def test_a_start_that_takes_the_rest_of_the_box_says_how_far_it_came(clockwork):
    plan = dataclasses.replace(BOX, hours=60 / 3600)
    clock = schedule.Clock(plan, begun=clockwork.now)
    clock.restore({"seconds": 50.0, "share": 0.75})
    clockwork.now += 30.0  # reading, compiling the validation
    assert clock.steps(100) == 1, "a start takes a step, so that there is a last one"
    _called(clock, clockwork, 20.0, 1, 100)
    assert clock.steps(101) == 0 and clock.progress(101, last=True) == 0.75


def test_time_between_calls_is_no_steps_but_counts(clockwork, monkeypatch):
    """For one process, and for one of two, whose clock is a call late."""
    for count in (1, 2):
        monkeypatch.setattr(schedule.processes, "count", lambda count=count: count)
        monkeypatch.setattr(schedule.processes, "agreed", lambda value: value)
        plan = dataclasses.replace(BOX, hours=100 / 3600, steps_per_call=50)
        plan = dataclasses.replace(plan, log_every=1000, eval_every=1000)
        clock, done = schedule.Clock(plan, begun=clockwork.now), 0
        begun = clockwork.now
        while steps := clock.steps(done):
            told = clock.told()
            clockwork.now += 10.0 if not done else 0.1 * steps
            clock.heard(np.array([0.0, told]) / count, steps)
            done += steps
            if done % 50 < steps:  # an evaluation
                clockwork.now += 7.0
                clock.look()
        assert clock._pace == pytest.approx(0.1)
        assert 97 < clockwork.now - begun < 107.2, "an evaluation may be the last thing"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 0}, "either steps or hours"),
        ({"hours": 1.0}, "either steps or hours"),
        ({"steps": -1}, "either steps or hours"),
        ({"schedule": "cosine"}, "paper, anneal"),
        ({"steps": 0, "hours": 1.0, "schedule": "paper"}, "hours need"),
        ({"polyak": 1.0}, "polyak"),
        ({"momentum": 1.0}, "momentum"),
        ({"batch": 0}, "batch"),
        ({"steps_per_call": 0}, "steps_per_call"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"clip": float("nan")}, "clip"),
        ({"warmup": -1}, "warmup"),
        ({"steps": 0, "hours": float("inf")}, "hours must be finite"),
    ],
)
def test_contradictory_plans_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, **fields)


def test_momentum_remembers_nine_tenths():
    optimizer = train.sgd(PLAN)
    state = optimizer.init({"a": jnp.zeros(1)})
    total = 0.0
    for gradient in (1.0, -2.0, 0.5):
        update, state = optimizer.update({"a": jnp.full(1, gradient)}, state)
        total = 0.9 * total + gradient
        assert float(update["a"][0]) == pytest.approx(total)


def test_clipping_bounds_the_gradient():
    clipped = train.adam(dataclasses.replace(PLAN, clip=1.0))
    free = train.adam(PLAN)
    params = {"a": jnp.zeros(4)}
    large = {"a": jnp.full(4, 1e3)}
    _, state = clipped.update(large, clipped.init(params))
    _, state_free = free.update(large, free.init(params))
    assert optax.tree.norm(state[1].mu) == pytest.approx(0.05, rel=1e-4)
    assert optax.tree.norm(state_free[0].mu) > 1


def _events(folder):
    """Scalars by step and name, from the records of all files, the oldest first."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            scalars = {value.tag: value.simple_value for value in event.summary.value}
            restart = event.session_log.status == event.session_log.START
            found.append((event.step, scalars, restart))
    return found


def test_tensorboard_has_the_numbers_of_the_lines(tmp_path):
    pytest.importorskip("tensorboardX")
    _, _, lines = _fit(tmp_path)
    board = metrics.Events(tmp_path / "events")
    assert not (tmp_path / "events").exists()
    for line in lines[:4]:
        board.add(line)
    board.close()
    time.sleep(1.1)  # files are named by the second
    again = metrics.Events(tmp_path / "events")  # goes on from an earlier checkpoint
    for line in lines[2:]:
        again.add(line)
    again.close()
    found = {}
    for step, scalars, restart in _events(tmp_path / "events"):
        if restart:  # as TensorBoard has it
            found = {k: v for k, v in found.items() if k[0] < step}
        found |= {(step, name): value for name, value in scalars.items()}
    wanted = {
        (line["step"], name): np.float32(value)
        for line in lines
        for name, value in line.items()
        if name != "step"
    }
    assert found == wanted and (12, "validation") in found
