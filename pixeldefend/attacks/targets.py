"""The classes that targeted attacks aim at."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend.attacks import outcome
from pixeldefend.attacks.outcome import LogitsFn, Task


def aimed(
    logits_fn: LogitsFn, variables: Any, given: Task, targets: chex.Array | None
) -> tuple[Task, chex.Array, chex.Array]:
    """The class to aim each image at, and what the network says of the image.

    Args:
      logits_fn: see `outcome.LogitsFn`.
      variables: for `logits_fn`.
      given: what the attack was given.
      targets: integers `[B]`, or None for the runners-up: the classes that the network
        finds likeliest but for the labels.

    Returns:
      `given` with the query that was made, targets int32 `[B]`, logits `[B, K]`.

    Raises:
      ValueError: targets of a wrong shape, or, where they are no tracers, that the
        network does not know.
    """
    logits = logits_fn(variables, given.images)
    given = given.replace(queries=given.queries + 1)
    if targets is None:
        other = jax.nn.one_hot(given.labels, logits.shape[1], dtype=bool)
        runners_up = jnp.argmax(jnp.where(other, -jnp.inf, logits), -1)
        return given, runners_up.astype(jnp.int32), logits
    if jnp.shape(targets) != given.labels.shape:
        raise ValueError(
            f"targets must be [{len(given.labels)}], one for each image: "
            f"{list(jnp.shape(targets))}"
        )
    outcome.check_labels(targets, logits.shape[1])
    return given, jnp.asarray(targets).astype(jnp.int32), logits
