"""L-BFGS-B on the likelihood: the purifier that PixelDefend was measured against.

On the host, since the search is scipy's; the values and gradients that it asks for
are computed on the device, for many searches at a time.
"""

import threading
from collections.abc import Callable

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
    meeting = _Meeting(len(starts))
    ended = np.array(starts, np.float64)
    asked = np.zeros(len(starts), np.int32)
    failures: list[BaseException] = []

    def search(i: int) -> None:
        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = meeting.ask(i, flat.reshape(starts.shape[1:]))
            return -float(value), -np.ravel(gradient).astype(np.float64)

        try:
            result = scipy.optimize.minimize(
                objective,
                starts[i].ravel(),
                jac=True,
                method="L-BFGS-B",
                bounds=scipy.optimize.Bounds(lower[i].ravel(), upper[i].ravel()),
                options={"maxiter": iterations},
            )
            ended[i] = result.x.reshape(starts.shape[1:])
            asked[i] = result.nfev
        except BaseException as error:  # raised again where it is heard
            failures.append(error)
        finally:
            meeting.leave()

    threads = [
        threading.Thread(target=search, args=(i,), daemon=True)
        for i in range(len(starts))
    ]
    # In the caller's own thread, as JAX's settings (such as precision) are a thread's.
    try:
        for thread in threads:
            thread.start()
        while images := meeting.questions():
            meeting.answer(_values(value_and_grad, images, starts))
    except BaseException as error:
        meeting.end(error)
        raise
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return ended, asked


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


class _Meeting:
    """Where searches wait until all of them have asked, and are answered at once."""

    def __init__(self, searches: int):
        self._running = searches
        self._asked: dict[int, np.ndarray] = {}
        self._answers: dict[int, tuple] = {}
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def ask(self, i: int, image: np.ndarray) -> tuple:
        """The value and gradient at `image`, for search `i`."""
        with self._changed:
            self._asked[i] = image
            self._changed.notify_all()
            self._changed.wait_for(lambda: i in self._answers or self._failure)
            if self._failure:
                raise self._failure
            return self._answers.pop(i)

    def leave(self) -> None:
        """One search fewer."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def questions(self) -> dict[int, np.ndarray]:
        """Waits for those of all that still run; none when all have left."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._asked) == self._running)
            asked, self._asked = self._asked, {}
            return dict(sorted(asked.items()))

    def answer(self, answers: dict[int, tuple]) -> None:
        """Lets the searches go on."""
        with self._changed:
            self._answers |= answers
            self._changed.notify_all()

    def end(self, failure: BaseException) -> None:
        """Ends all searches."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()
