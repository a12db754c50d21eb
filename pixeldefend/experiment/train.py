"""Training, shared by every kind of model: state, step, schedule and loop."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from pixeldefend.experiment import data, files, interruption, parallel, processes, zoo

SCHEDULES = ("paper", "anneal")
LossFn = Callable[[Any, Any, Any, chex.PRNGKey], tuple[chex.Array, tuple[Any, dict]]]
Averaged = Callable[[Any, Any], Any]
# Seconds reserved for the last checkpoint and the model, at most this share of a box.
_WRITING = (3.0, 0.02)


def parameters(params: Any, model_state: Any) -> Any:
    """What is averaged where nothing else is said."""
    del model_state
    return params


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the last good checkpoint is kept."""


class UnfinishedWarmupError(RuntimeError):
    """The time box ended before the learning rate had reached its highest."""


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32, steps done.
      params: being optimised.
      average: Polyak average of what is evaluated and released: the parameters, or
        what else `start` was told.
      model_state: of the model beside parameters (batch statistics), or an empty dict.
      optimizer_state: of optax.
    """

    step: chex.Array
    params: Any
    average: Any
    model_state: Any
    optimizer_state: Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
      batch: images per step over all devices.
      steps: number of steps; or
      hours: a time box, for `anneal` only; the two exclude each other. Everything
        counts from when `fit` is told that the run began, compilation, validation and
        earlier parts of a run that was stopped included.
      schedule: "paper", `learning_rate * decay ** step`, divided by 10 at every drop,
        or "anneal": linear warm-up, then half a cosine to zero at the end.
      learning_rate: at its highest.
      warmup: steps, "anneal" only.
      decay: per step, "paper" only.
      drops: steps from which on the rate is a tenth of what it was, "paper" only.
      momentum: of `sgd`.
      polyak: decay of the average, per step; less in the first steps, which would
        otherwise hold it back.
      clip: largest global norm of the gradient; 0 for no clipping.
      seed: of shuffling and dropout.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations on validation images.
      steps_per_call: steps, at most, that the device takes without the host.
      checkpoint_minutes: between checkpoints.
    """

    batch: int
    steps: int = 0
    hours: float = 0.0
    schedule: str = "anneal"
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.999995
    drops: tuple[int, ...] = ()
    momentum: float = 0.9
    polyak: float = 0.9995
    clip: float = 0.0
    seed: int = 0
    log_every: int = 50
    eval_every: int = 1000
    steps_per_call: int = 1
    checkpoint_minutes: float = 5.0

    def __post_init__(self):
        """Checks the plan.

        Raises:
          ValueError: contradictory or out of range; the message names the field.
        """
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule must be one of {', '.join(SCHEDULES)}: {self.schedule!r}"
            )
        if (self.steps > 0) == (self.hours > 0) or min(self.steps, self.hours) < 0:
            raise ValueError(
                "give either steps or hours, the other 0: "
                f"steps={self.steps}, hours={self.hours}"
            )
        if self.hours and self.schedule != "anneal":
            raise ValueError("hours need schedule 'anneal'; give steps for 'paper'")
        for name in ("polyak", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1): {getattr(self, name)}")
        for name in ("batch", "log_every", "eval_every", "steps_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
        for name in ("learning_rate", "decay", "hours"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative: {value}")
        for name in ("warmup", "clip", "checkpoint_minutes", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")

    def rate(self, step: int, progress: float) -> float:
        """The learning rate of a step."""
        if self.schedule == "paper":
            drops = sum(step >= drop for drop in self.drops)
            return self.learning_rate * self.decay**step * 0.1**drops
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1)) * cosine


def adam(plan: Plan, *, usual: bool = False) -> optax.GradientTransformation:
    """Adam without a rate.

    Args:
      plan: says whether gradients are clipped.
      usual: as Kingma and Ba recommend it; else as PixelCNN++ uses it, with the 1e-8
        inside the square root.
    """
    steps = [optax.clip_by_global_norm(plan.clip)] if plan.clip else []
    if usual:
        steps.append(optax.scale_by_adam())
    else:
        steps.append(optax.scale_by_adam(b1=0.95, b2=0.9995, eps=0.0, eps_root=1e-8))
    return optax.chain(*steps)


def sgd(plan: Plan) -> optax.GradientTransformation:
    """Gradient descent with momentum, without a rate."""
    steps = [optax.clip_by_global_norm(plan.clip)] if plan.clip else []
    return optax.chain(*steps, optax.trace(plan.momentum))


def start(
    params: Any,
    model_state: Any,
    optimizer: optax.GradientTransformation,
    averaged: Averaged = parameters,
) -> TrainState:
    """The state before the first step; `averaged` as for `make_step`."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the step donates its arguments, and no buffer may be donated twice.
        average=jax.tree.map(jnp.copy, averaged(params, model_state)),
        model_state=model_state,
        optimizer_state=optimizer.init(params),
    )


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    polyak: float,
    averaged: Averaged = parameters,
) -> Callable[..., tuple[TrainState, dict]]:
    """A training step for one device, to be mapped by `parallel.map_step`.

    Args:
      loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, (state, metrics))`;
        means over the device's part of the batch.
      optimizer: without the learning rate.
      polyak: decay of the average.
      averaged: `averaged(params, model_state)`, what the average is of.

    Returns:
      `step(state, batch, key, learning_rate, told) -> (state, metrics)`. Gradients,
      model state, metrics and what processes have `told` each other are averaged over
      the devices, in one piece.
    """

    def step(
        state: TrainState,
        batch: Any,
        key: chex.PRNGKey,
        learning_rate: chex.Array,
        told: chex.Array,
    ) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))
        (loss, (model_state, metrics)), gradients = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params, state.model_state, batch, key)
        gradients, model_state, metrics = jax.lax.pmean(
            (gradients, model_state, {"loss": loss, "told": told, **metrics}),
            parallel.AXIS,
        )
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer_state, state.params
        )
        updates = jax.tree.map(lambda u: -learning_rate.astype(u.dtype) * u, updates)
        params = optax.apply_updates(state.params, updates)
        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(jnp.float32(polyak), (1 + done) / (10 + done))
        average = jax.tree.map(  # without decay exactly what is new
            lambda new, old: (
                (1 - decay).astype(new.dtype) * new + decay.astype(old.dtype) * old
            ),
            averaged(params, model_state),
            state.average,
        )
        return TrainState(
            step=state.step + 1,
            params=params,
            average=average,
            model_state=model_state,
            optimizer_state=optimizer_state,
        ), metrics

    return step


def several(step: Callable[..., tuple[TrainState, dict]], most: int) -> Callable:
    """Up to `most` steps in one call, on images that are on the device already.

    Args:
      step: from `make_step`.
      most: static. One is a call without a loop: XLA's convolutions on a CPU take
        nearly twenty times as long in the body of a loop.

    Returns:
      `call(state, arrays, rows, rates, count, key, told) -> (state, sums)` with the
      training set `arrays`, a pytree of `[N, ...]`, rows `[most, B]` of it, rates
      `[most]`, of both of which the first `count` are used, and metrics summed over
      the steps. However the steps of a run are divided into calls, one program takes
      them all, so its results are the same bit for bit.
    """
    step = jax.jit(step)  # traced once, though its metrics' shapes are asked for first

    def call(
        state: TrainState,
        arrays: Any,
        rows: chex.Array,
        rates: chex.Array,
        count: chex.Array,
        key: chex.PRNGKey,
        told: chex.Array,
    ) -> tuple[TrainState, dict]:
        def one(i: Any, state: TrainState) -> tuple[TrainState, dict]:
            batch = jax.tree.map(lambda array: array[rows[i]], arrays)
            return step(state, batch, key, rates[i], told)

        if most == 1:
            return one(0, state)

        def next_(i: chex.Array, carry: tuple) -> tuple:
            state, metrics = one(i, carry[0])
            return state, jax.tree.map(jnp.add, carry[1], metrics)

        sums = jax.tree.map(
            lambda metric: jnp.zeros(metric.shape, metric.dtype),
            jax.eval_shape(lambda state: one(0, state)[1], state),
        )
        return jax.lax.fori_loop(0, count, next_, (state, sums))

    return call


def fit(
    state: TrainState,
    step: Callable[..., tuple[TrainState, dict]],
    arrays: dict[str, np.ndarray],
    plan: Plan,
    workdir: epath.PathLike,
    evaluate: Callable[[TrainState], dict[str, float]],
    report: Callable[[dict], None],
    *,
    begun: float | None = None,
) -> tuple[TrainState, dict]:
    """Trains to the end of the plan, from the newest checkpoint if there is one.

    With `plan.steps` a run that was killed ends with the same bits as an undisturbed
    one: batches and keys are functions of the step, and the checkpoint holds the rest.
    With `plan.hours` the clock decides, of several processes the first one's: the rate
    goes from its highest, when the first step is compiled and done, to zero at the last
    step, which leaves as much of the box as the last validation and checkpoint take. A
    run that was stopped goes on from the rate it had; if starting again took what was
    left of the box, it ends after one more step, and the last line's `progress` says
    how far the rate had come.

    Args:
      state: the first state; replaced where a checkpoint is found.
      step: from `make_step`, for one device.
      arrays: the training set, `[N, ...]` each, which every device gets as it is;
        batches are dicts of its rows.
      plan: how long and how fast.
      workdir: gets `checkpoints/` and `metrics.jsonl`.
      evaluate: figures of a state on validation images, by name.
      report: called with every line of metrics (step, progress, loss, ...).
      begun: by `time.monotonic`, when the time box opened; None: now.

    Returns:
      The last state and the last line of metrics (with `seconds` and `images`).

    Raises:
      NonFiniteLossError: the loss is no longer finite.
      UnfinishedWarmupError: the time box ended within the warm-up.
      interruption.Interrupted: the run was asked to stop; there is a checkpoint.
      ValueError: batch and devices do not fit.
      checkpoint.UnreadableError: a checkpoint cannot be read.
    """
    begun = time.monotonic() if begun is None else begun
    parallel.per_device(plan.batch)
    own = parallel.own_rows(plan.batch)
    workdir = epath.Path(workdir)
    with contextlib.closing(zoo.Checkpoints(workdir / "checkpoints")) as checkpoints:
        clock = _Clock(plan, begun)
        done = 0
        restored = checkpoints.restore(state)
        if restored is not None:
            done, state, extra = restored
            clock.restore(extra)
        processes.barrier()  # nothing is saved before every process has looked
        lines = _Metrics(workdir / "metrics.jsonl", done)
        batches = data.Batches(len(arrays["images"]), plan.batch, plan.seed)
        indices = batches.from_step(done)
        key = jax.random.key(plan.seed)
        mapped = parallel.map_step(
            several(step, plan.steps_per_call), plan.steps_per_call
        )
        if plan.hours and clock.steps(done):
            clock.reserve_for(evaluate, state)
        placed = parallel.on_every_device(arrays)
        saved = logged = time.monotonic()
        gathered = _Sums()
        while count := clock.steps(done):
            rows = np.stack([next(indices)[own] for _ in range(count)])
            rates = clock.rates(done, count)
            told = (float(interruption.wanted()), clock.told())
            state, sums = mapped(state, placed, rows, rates, key, told)
            stop = clock.heard(np.asarray(sums.pop("told")) / count, count)
            gathered.add(sums, rates)
            done += count
            last = not clock.steps(done)
            evaluating = last or done % plan.eval_every == 0
            if not (evaluating or stop) and done % plan.log_every:
                continue
            means = gathered.means(done)
            rate = plan.batch * gathered.steps / max(time.monotonic() - logged, 1e-9)
            gathered = _Sums()
            figures = {}
            if evaluating:
                with processes.undisturbed():
                    figures = evaluate(state)
                clock.look()
                last = not clock.steps(done)
            line = {
                "step": done,
                "images": done * plan.batch,
                "progress": round(clock.progress(done, last), 6),
                "seconds": round(clock.seconds, 3),
                **means,
                "images_per_second": round(rate, 2),
                **figures,
            }
            lines.add(line)
            report(line)
            # Only beside a line, whose loss is known to be finite.
            if last or stop or time.monotonic() - saved > 60 * plan.checkpoint_minutes:
                checkpoints.save(done, state, clock.kept(done) | {"finished": last})
                saved = time.monotonic()
            if stop and not last:
                raise interruption.Interrupted()
            logged = time.monotonic()
    if plan.hours and done <= plan.warmup:
        raise UnfinishedWarmupError(
            f"{plan.hours:g} hours ended after {done} steps, within the warm-up of "
            f"{plan.warmup} (after {clock.compiled or 0:.0f} s the first one was "
            "compiled and done): give more hours or a shorter warm-up, and another "
            "workdir"
        )
    return state, lines.last


class _Sums:
    """Metrics since the last line, added up."""

    def __init__(self):
        self.steps = 0
        self._calls: list[dict] = []
        self._rate = 0.0

    def add(self, sums: dict, rates: np.ndarray) -> None:
        self.steps += len(rates)
        self._calls.append(sums)
        self._rate = float(rates[-1])

    def means(self, done: int) -> dict[str, float]:
        """Averages over the steps, and the last one's rate; checks what must be finite.

        Raises:
          NonFiniteLossError: the loss or the gradient is not.
        """
        means = {
            name: float(np.sum([np.asarray(sums[name]) for sums in self._calls]))
            / self.steps
            for name in self._calls[0]
        }
        # The gradient too: one that is not finite has already spoiled the parameters.
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(means[name]):
                raise NonFiniteLossError(
                    f"the {name} is {means[name]} at step {done}: lower the learning "
                    "rate or clip the gradient, and start again in another workdir"
                )
        return means | {"learning_rate": self._rate}


class _Clock:
    """How many steps are to come, at which rates, and when it is time to stop.

    Processes take the same steps and stop at the same one: each tells its wish to stop
    with every call, and the first one its seconds, and all go by what they hear.
    """

    def __init__(self, plan: Plan, begun: float):
        self.plan = plan
        self.begun = begun
        self.seconds = 0.0  # after the last call
        self.compiled: float | None = None  # seconds after this process's first one
        self._end = 3600 * plan.hours
        self._share = 0.0  # of the schedule, when `compiled`
        self._finished = False
        self._pace: float | None = None  # seconds of a step
        self._calls = 0  # of which it is known how long they took
        self._called = (0.0, 0)  # seconds before the last of these, and its steps

    def restore(self, extra: dict) -> None:
        """Goes on from what a checkpoint `kept`."""
        self.begun -= extra["seconds"]
        self.seconds = extra["seconds"]
        self._share = extra.get("share", 0.0)
        self._finished = bool(self.plan.hours) and extra.get("finished", False)

    def kept(self, done: int) -> dict:
        """What a checkpoint tells of the time."""
        return {"seconds": self.now(), "share": self._share_at(done, self.seconds)}

    def now(self) -> float:
        """Seconds since the box was opened, by this process's clock."""
        return time.monotonic() - self.begun

    def reserve_for(
        self, evaluate: Callable[[TrainState], dict], state: TrainState
    ) -> None:
        """Sets aside, of a time box, what comes after the last step."""
        with processes.undisturbed():
            evaluate(state)  # compiles
            before = time.monotonic()
            evaluate(state)
        seconds, share = _WRITING
        taken = time.monotonic() - before + min(seconds, share * self._end)
        self._end -= processes.agreed(taken)

    def steps(self, done: int) -> int:
        """Of the next call; 0 at the end."""
        plan = self.plan
        if self._finished:
            return 0
        count = min(
            plan.steps_per_call,
            plan.log_every - done % plan.log_every,
            plan.eval_every - done % plan.eval_every,
        )
        if plan.steps:
            return max(0, min(count, plan.steps - done))
        if self.compiled is None:
            return 1  # every start takes a step, so that there is a last one
        left = self._end - self.seconds
        if self._pace is None:
            return 1 if left > 0 else 0
        if left < self._pace / 2:
            return 0
        return max(1, min(count, round(left / self._pace)))

    def progress(self, done: int, last: bool) -> float:
        """The share of the run that is done; of one that ended, of its schedule."""
        if self.plan.steps:
            return done / self.plan.steps
        if not last:
            return min(1.0, self.seconds / max(self._end, 1e-9))
        return 1.0 if self._calls > 1 else self._share

    def rates(self, done: int, count: int) -> np.ndarray:
        """Learning rates `[count]` of the next steps."""
        times = self.seconds + np.arange(count) * (self._pace or 0.0)
        return np.array(
            [
                self.plan.rate(done + i, self._share_at(done + i, times[i]))
                for i in range(count)
            ]
        )

    def _share_at(self, done: int, seconds: float) -> float:
        """How much of the schedule is over."""
        if self.plan.steps:
            return done / self.plan.steps
        if self.compiled is None:
            return self._share
        left = max(self._end - self.compiled, 1e-9)
        over = min(1.0, max(0.0, (seconds - self.compiled) / left))
        return self._share + (1 - self._share) * over

    def told(self) -> float:
        """What the first process tells of its clock before a call, seconds."""
        return self.now() if processes.is_first() else 0.0

    def heard(self, words: np.ndarray, count: int) -> bool:
        """Takes note of a call of `count` steps that is done; says whether to stop.

        `words` are what was told before it, averaged over the processes.
        """
        wish, before = (float(word) for word in words * processes.count())
        alone = processes.count() == 1
        if alone:
            now, (since, steps) = self.now(), (before, count)
            wish = interruption.wanted()
        else:  # the clock that all have is a call late
            now, (since, steps) = before, self._called
        self._called = before, count
        if steps:
            self._calls += 1
            if self.compiled is None:
                self.compiled = now
        if steps and self._calls > 1:  # the first one was compiled
            found = max((now - since) / steps, 1e-6)  # clocks of processes are coarse
            self._pace = found if self._pace is None else (self._pace + found) / 2
        self.seconds = now + (0 if alone else count * (self._pace or 0.0))
        return bool(wish)

    def look(self) -> None:
        """Takes note of the time after something that was no step."""
        if self.plan.hours:
            self.seconds = processes.agreed(self.now())
            self._called = self.seconds, 0


class _Metrics:
    """`metrics.jsonl`, cut back to the step that training continues from."""

    def __init__(self, path: epath.Path, done: int):
        self.path = path
        kept = []
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # the line that a kill left unfinished
                    break
                if line["step"] > done:
                    break
                kept.append(line)
        self.last = kept[-1] if kept else {}
        with files.whole_file(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: dict) -> None:
        self.last = line
        if not processes.is_first():
            return
        text = json.dumps(line) + "\n"
        if files.is_remote(self.path):
            with files.whole_file(self.path) as temporary:
                temporary.write_text(self.path.read_text() + text)
            return
        with self.path.open("a") as file:
            file.write(text)
