"""How long and how fast to train, on which batches, and the clock of a time box."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pixeldefend.experiment import interruption, processes

SCHEDULES = ("paper", "anneal")
# Seconds reserved for the last checkpoint and the model, at most this share of a box.
_WRITING = (3.0, 0.02)


class UnfinishedWarmupError(RuntimeError):
    """The time box ended before the learning rate had reached its highest."""


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

    def __post_init__(self) -> None:
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
            raise ValueError("hours need schedule 'anneal'; for 'paper' give steps")
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


class Clock:
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
        """Goes on from what a checkpoint `kept`.

        Raises:
          KeyError, TypeError, ValueError: it is something else.
        """
        self.seconds = float(extra["seconds"])
        self.begun -= self.seconds
        self._share = float(extra.get("share", 0.0))
        self._finished = bool(self.plan.hours) and extra.get("finished", False)

    def kept(self, done: int) -> dict:
        """What a checkpoint tells of the time."""
        return {"seconds": self.now(), "share": self._share_at(done, self.seconds)}

    def now(self) -> float:
        """Seconds since the box was opened, by this process's clock."""
        return time.monotonic() - self.begun

    def reserve_for(self, evaluate: Callable[[Any], dict], state: Any) -> None:
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

    def check_warmup(self, done: int) -> None:
        """Checks, at the end, that a time box was long enough for a model.

        Raises:
          UnfinishedWarmupError: it ended before the rate was at its highest.
        """
        plan = self.plan
        if plan.hours and done <= plan.warmup:
            raise UnfinishedWarmupError(
                f"{plan.hours:g} hours ended after {done} of the {plan.warmup} steps "
                f"of the warm-up (the first, with compilation, after "
                f"{self.compiled or 0:.0f} s): give more train.hours or fewer steps of "
                "train.warmup, and another workdir, or remove this one"
            )

    def look(self) -> None:
        """Takes note of the time after something that was no step."""
        if self.plan.hours:
            self.seconds = processes.agreed(self.now())
            self._called = self.seconds, 0


@dataclasses.dataclass(frozen=True)
class Batches:
    """Shuffled batches as a function of the step alone, so any step can come next.

    Every epoch is a fresh permutation; its incomplete last batch is left out.

    Attributes:
      count: number of images.
      size: of a batch, in images.
      seed: of the shuffling.
    """

    count: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
          ValueError: not even one batch.
        """
        if not 1 <= self.size <= self.count:
            raise ValueError(
                f"batch must be between 1 and {self.count}, the number of training "
                f"images: {self.size}"
            )

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.count // self.size

    def from_step(self, step: int) -> Iterator[np.ndarray]:
        """Yields index arrays `[size]` for `step`, `step + 1`, ... without end."""
        while True:
            epoch, first = divmod(step, self.per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            for i in range(first, self.per_epoch):
                yield order[i * self.size : (i + 1) * self.size]
                step += 1
