"""L-BFGS-B on the likelihood: the purifier that PixelDefend was measured against.

On the host, since the search is scipy's; the values and gradients that it asks for
are computed on the device, for many searches at a time.
"""

import queue
from collections.abc import Callable
from concurrent import futures

import jax
import numpy as np
import scipy.optimize

ValueAndGrad = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def climb(
    value_and_grad: ValueAndGrad,
    starts: np.ndarray,
    *,
    lower: np.ndarray,
    upper: np.ndarray,
    iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs L-BFGS-B upwards from several starts, in step with each other.

    Each search is scipy's and knows nothing of the others; a value is computed once
    all that still run have asked for one (Song et al., PixelDefend, section 4.1 and
    Figure 5; Zhu et al. 1997).

    Args:
      value_and_grad: of floating levels `[N, H, W, C]`, values `[N]` to be raised and
        gradients like the levels; images are independent of each other.
      starts: floating levels `[N, H, W, C]`.
      lower: lowest levels, `[H, W, C]` or like the starts.
      upper: highest levels, likewise.
      iterations: of each search, at most.

    Returns:
      The floating levels at which the searches ended, like the starts, and how often
      each asked, `[N]`.

    Raises:
      ValueError: no iterations, or an empty box.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1: {iterations}")
    lower, upper = (np.broadcast_to(a, starts.shape) for a in (lower, upper))
    if np.any(lower > upper):
        raise ValueError("there are lower bounds above upper ones")
    # What searches ask, None once they have ended; and what each is answered.
    questions: queue.SimpleQueue = queue.SimpleQueue()
    answers = [queue.SimpleQueue() for _ in starts]

    def search(i: int) -> scipy.optimize.OptimizeResult:
        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            questions.put((i, flat.reshape(starts.shape[1:])))
            answer = answers[i].get()
            if answer is None:
                raise futures.CancelledError
            value, gradient = answer
            return -float(value), -np.ravel(gradient).astype(np.float64)

        try:
            return scipy.optimize.minimize(
                objective,
                starts[i].ravel(),
                jac=True,
                method="L-BFGS-B",
                bounds=scipy.optimize.Bounds(lower[i].ravel(), upper[i].ravel()),
                options={"maxiter": iterations},
            )
        finally:
            questions.put((i, None))

    with futures.ThreadPoolExecutor(len(starts)) as pool:
        searches = [pool.submit(search, i) for i in range(len(starts))]
        # In the caller's own thread, as JAX's settings (such as precision) are a
        # thread's.
        try:
            _answer_together(value_and_grad, questions, answers, starts)
        except BaseException:
            for own in answers:
                own.put(None)  # which ends its search
            raise
    results = [search.result() for search in searches]
    ended = np.stack([result.x.reshape(starts.shape[1:]) for result in results])
    return ended, np.array([result.nfev for result in results], np.int32)


def _answer_together(
    value_and_grad: ValueAndGrad,
    questions: queue.SimpleQueue,
    answers: list[queue.SimpleQueue],
    starts: np.ndarray,
) -> None:
    """Answers once all searches that still run have asked, until none does."""
    running, asked = len(starts), {}
    while running:
        i, image = questions.get()
        if image is None:
            running -= 1
        else:
            asked[i] = image
        if asked and len(asked) == running:
            found = _values(value_and_grad, dict(sorted(asked.items())), starts)
            asked.clear()
            for i, answer in found.items():
                answers[i].put(answer)


def _values(
    value_and_grad: ValueAndGrad, images: dict[int, np.ndarray], starts: np.ndarray
) -> dict[int, tuple]:
    """Values and gradients of some images, by search."""
    stacked = np.stack(list(images.values())).astype(starts.dtype)
    # Of a few sizes only, so that few programs are compiled.
    size = len(starts)
    while size // 2 >= len(stacked):
        size //= 2
    filled = np.concatenate([stacked, np.repeat(stacked[:1], size - len(stacked), 0)])
    values, gradients = jax.device_get(value_and_grad(filled))
    return {i: (values[k], gradients[k]) for k, i in enumerate(images)}
