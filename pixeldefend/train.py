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

from pixeldefend import checkpoint, data, files, interruption, parallel, processes

SCHEDULES = ("paper", "anneal")
LossFn = Callable[[Any, Any, Any, chex.PRNGKey], tuple[chex.Array, tuple[Any, dict]]]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the last good checkpoint is kept."""


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32, steps done.
      params: being optimised.
      average: Polyak average of the parameters; what is evaluated and released.
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
      hours: of training time (validation included), for `anneal` only; the two exclude
        each other.
      schedule: "paper", `learning_rate * decay ** step`, divided by 10 at every drop,
        or "anneal": linear warm-up, then half a cosine to zero at the end.
      learning_rate: at its highest.
      warmup: steps, "anneal" only.
      decay: per step, "paper" only.
      drops: steps from which on the rate is a tenth of what it was, "paper" only.
      momentum: of `sgd`.
      polyak: decay of the average, per step.
      clip: largest global norm of the gradient; 0 for no clipping.
      seed: of shuffling and dropout.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations on validation images.
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
        for name in ("batch", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
        for name in ("learning_rate", "decay", "hours"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative: {value}")
        for name in ("warmup", "clip", "checkpoint_minutes", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the run that is done, 1 at its end."""
        return step / self.steps if self.steps else seconds / (3600 * self.hours)

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
    params: Any, model_state: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the step donates its arguments, and no buffer may be donated twice.
        average=jax.tree.map(jnp.copy, params),
        model_state=model_state,
        optimizer_state=optimizer.init(params),
    )


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    polyak: float,
) -> Callable[..., tuple[TrainState, dict]]:
    """A training step for one device, to be mapped by `parallel.map_step`.

    Args:
      loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, (state, metrics))`;
        means over the device's part of the batch.
      optimizer: without the learning rate.
      polyak: decay of the average.

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
        average = optax.incremental_update(params, state.average, 1 - polyak)
        return TrainState(
            step=state.step + 1,
            params=params,
            average=average,
            model_state=model_state,
            optimizer_state=optimizer_state,
        ), metrics

    return step


def fit(
    state: TrainState,
    step: Callable[..., tuple[TrainState, dict]],
    arrays: dict[str, np.ndarray],
    plan: Plan,
    workdir: epath.PathLike,
    evaluate: Callable[[TrainState], dict[str, float]],
    report: Callable[[dict], None],
) -> tuple[TrainState, dict]:
    """Trains to the end of the plan, from the newest checkpoint if there is one.

    With `plan.steps` a run that was killed ends with the same bits as an undisturbed
    one: batches and keys are functions of the step, and the checkpoint holds the rest.
    With `plan.hours` the clock decides, and the hours already spent count; of several
    processes the first one's.

    Args:
      state: the first state; replaced where a checkpoint is found.
      step: from `make_step`, for one device.
      arrays: the training set, `[N, ...]` each; batches are dicts of their rows.
      plan: how long and how fast.
      workdir: gets `checkpoints/` and `metrics.jsonl`.
      evaluate: figures of a state on validation images, by name.
      report: called with every line of metrics (step, progress, loss, ...).

    Returns:
      The last state and the last line of metrics (with `seconds` and `images`).

    Raises:
      NonFiniteLossError: the loss is no longer finite.
      interruption.Interrupted: the run was asked to stop; there is a checkpoint.
      ValueError: batch and devices do not fit.
      checkpoint.UnreadableError: a checkpoint cannot be read.
    """
    parallel.per_device(plan.batch)
    own = parallel.own_rows(plan.batch)
    workdir = epath.Path(workdir)
    with contextlib.closing(
        checkpoint.Checkpoints(workdir / "checkpoints")
    ) as checkpoints:
        done, seconds = 0, 0.0
        restored = checkpoints.restore(state)
        if restored is not None:
            done, state, extra = restored
            seconds = extra["seconds"]
        processes.barrier()  # nothing is saved before every process has looked
        lines = _Metrics(workdir / "metrics.jsonl", done)
        batches = data.Batches(len(arrays["images"]), plan.batch, plan.seed)
        indices = batches.from_step(done)
        key = jax.random.key(plan.seed)
        loop = _Loop(plan, parallel.map_step(step), key, seconds)
        spent = seconds  # by this process's clock
        begun = saved = logged = time.monotonic()
        waiting: list[dict] = []
        while plan.progress(done, seconds) < 1:
            index = next(indices)[own]
            batch = {name: array[index] for name, array in arrays.items()}
            state, metrics = loop.advance(state, batch, done, spent)
            waiting.append(metrics)
            done += 1
            now = time.monotonic()
            spent, begun = spent + now - begun, now
            stop, seconds = loop.agreed(spent)
            last = plan.progress(done, seconds) >= 1
            evaluating = last or done % plan.eval_every == 0
            if not (evaluating or stop) and done % plan.log_every:
                continue
            line = loop.line(done, seconds, waiting)
            rate = plan.batch * len(waiting) / max(time.monotonic() - logged, 1e-9)
            line["images_per_second"] = round(rate, 2)
            waiting = []
            if evaluating:
                with processes.undisturbed():
                    line.update(evaluate(state))
            lines.add(line)
            report(line)
            # Only beside a line, whose loss is known to be finite.
            if last or stop or now - saved > 60 * plan.checkpoint_minutes:
                checkpoints.save(done, state, {"seconds": seconds})
                saved = now
            if stop and not last:
                raise interruption.Interrupted()
            logged = time.monotonic()
    return state, lines.last


@dataclasses.dataclass
class _Loop:
    """The mapped step and what it takes beside the state.

    Processes stop at the same step and by the same clock: each tells its wish and the
    first one its seconds with every step, and all hear of it one step later, when the
    devices are done with it.
    """

    plan: Plan
    step: Callable[..., tuple[TrainState, dict]]
    key: chex.PRNGKey
    seconds: float
    heard: list = dataclasses.field(default_factory=list)

    def advance(
        self, state: TrainState, batch: dict, done: int, spent: float
    ) -> tuple[TrainState, dict]:
        rate = self.plan.rate(done, self.plan.progress(done, self.seconds))
        clock = spent if processes.is_first() else 0.0
        told = (float(interruption.wanted()), clock)
        state, metrics = self.step(state, batch, self.key, rate, told)
        self.heard.append(metrics.pop("told"))
        return state, metrics | {"learning_rate": rate}

    def agreed(self, spent: float) -> tuple[bool, float]:
        """Whether to stop now, and the seconds spent, the same in every process."""
        if processes.count() == 1:  # no need to wait for the devices
            self.heard.clear()
            self.seconds = spent
            return interruption.wanted(), spent
        if len(self.heard) < 2:
            return False, self.seconds
        wish, clock = np.asarray(self.heard.pop(0)) * processes.count()
        self.seconds = float(clock)
        return bool(wish > 0), self.seconds

    def line(self, done: int, seconds: float, waiting: list[dict]) -> dict:
        """Averages what has gathered since the last line; checks that it is finite."""
        means = {
            name: float(np.mean([metrics[name] for metrics in waiting]))
            for name in waiting[0]
        }
        # The gradient too: one that is not finite has already spoiled the parameters.
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(means[name]):
                raise NonFiniteLossError(
                    f"the {name} is {means[name]} at step {done}: lower the learning "
                    "rate or clip the gradient, and start again in another workdir"
                )
        progress = self.plan.progress(done, seconds)
        return {
            "step": done,
            "images": done * self.plan.batch,
            "progress": round(progress, 6),
            "seconds": round(seconds, 3),
            **means,
        }


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
