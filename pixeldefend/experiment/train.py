"""Training, shared by every kind of model: state, step, schedule and loop."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from pixeldefend.experiment import files, interruption, parallel, processes
from pixeldefend.experiment.checkpoints import Checkpoints, unreadable
from pixeldefend.experiment.metrics import Averages, MetricsFile
from pixeldefend.experiment.schedule import Batches, Clock, Plan

LossFn = Callable[[Any, Any, Any, chex.PRNGKey], tuple[chex.Array, tuple[Any, dict]]]
Averaged = Callable[[Any, Any], Any]
Step = Callable[..., tuple["TrainState", dict]]
Evaluate = Callable[["TrainState"], dict[str, float]]


def parameters(params: Any, model_state: Any) -> Any:
    """What is averaged where nothing else is said."""
    del model_state
    return params


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
) -> Step:
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


def several(step: Step, most: int) -> Callable:
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
    step: Step,
    arrays: dict[str, np.ndarray],
    plan: Plan,
    workdir: epath.PathLike,
    evaluate: Evaluate,
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
    parallel.per_device(plan.batch)
    workdir = files.expanded(workdir)
    clock = Clock(plan, time.monotonic() if begun is None else begun)
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        done, state, kept = _resume(checkpoints, state, clock)
        lines = MetricsFile(workdir / "metrics.jsonl", done)
        if plan.hours and clock.steps(done):
            clock.reserve_for(evaluate, state)
        saved = time.monotonic()
        gathered = Averages(plan.batch, kept)
        stretches = _stretches(state, step, arrays, done, clock, gathered, evaluate)
        for stretch in stretches:
            done, state, line = stretch.done, stretch.state, stretch.line
            if line:
                lines.add(line)
                report(line)
            late = time.monotonic() - saved > 60 * plan.checkpoint_minutes
            if stretch.last or stretch.stop or late:
                extra = {"finished": stretch.last, "gathered": stretch.gathered}
                checkpoints.save(done, state, clock.kept(done) | extra)
                saved = time.monotonic()
            if stretch.stop and not stretch.last:
                raise interruption.Interrupted()
    clock.check_warmup(done)
    return state, lines.last


class _Stretch(NamedTuple):
    """Steps up to a line of metrics, or to a wish to stop.

    Attributes:
      done: steps so far.
      state: after them; the next step takes it over.
      line: of metrics; None where the run stops in between.
      gathered: what the line still to come then needs to know, or None.
      last: whether these are the last steps.
      stop: whether a process was asked to stop.
    """

    done: int
    state: TrainState
    line: dict | None
    gathered: dict | None
    last: bool
    stop: bool


def _resume(
    checkpoints: Checkpoints, first: TrainState, clock: Clock
) -> tuple[int, TrainState, dict | None]:
    """Steps that are done, the state after them and what is gathered for a line.

    The clock goes on as it went.
    """
    restored = checkpoints.restore(first)
    processes.barrier()  # nothing is saved before every process has looked
    if restored is None:
        return 0, first, None
    done, state, extra = restored
    try:
        clock.restore(extra)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it does not record the seconds of training ({error})"
        raise unreadable(checkpoints.folder / str(done), reason) from error
    return done, state, extra.get("gathered")


def _stretches(
    state: TrainState,
    step: Step,
    arrays: dict[str, np.ndarray],
    done: int,
    clock: Clock,
    gathered: Averages,
    evaluate: Evaluate,
) -> Iterator[_Stretch]:
    """Trains from the step `done` to the end of the plan, from line to line.

    Raises:
      NonFiniteLossError: the loss is no longer finite.
    """
    plan = clock.plan
    own = parallel.own_rows(plan.batch)
    batches = Batches(len(arrays["images"]), plan.batch, plan.seed)
    indices = batches.from_step(done)
    key = jax.random.key(plan.seed)
    mapped = parallel.map_step(several(step, plan.steps_per_call), plan.steps_per_call)
    placed = parallel.on_every_device(arrays)
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
        due = evaluating or done % plan.log_every == 0
        if not (due or stop):
            continue
        means = gathered.means(done)  # of losses that are known to be finite then
        if not due:
            yield _Stretch(done, state, None, gathered.kept(), last, stop)
            continue
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
            **figures,
        }
        yield _Stretch(done, state, line, None, last, stop)
        gathered = Averages(plan.batch)
