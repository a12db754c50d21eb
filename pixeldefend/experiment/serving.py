"""Purifying and screening images as other programs have them."""

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import detection, pixels
from pixeldefend.defences import base, graded, purification
from pixeldefend.density import likelihood
from pixeldefend.experiment import parallel, zoo

LAYOUTS = ("NHWC", "NCHW")
_SLACK = 0.01  # levels: how far beyond black and white counts as rounding


class _Served:
    """A density model, and a program for images of one layout and range.

    Attributes:
      defence: what is done, as `judge` and `behind` take it.
      params: with what.
      options: what the same is made from again.
    """

    def __init__(
        self,
        weights: str,
        *,
        eps: int | None = None,
        grades: Any = None,
        layout: str = "NHWC",
        range: tuple[float, float] = (0, 255),
        batch: int = 32,
        cache: bool = True,
    ):
        """Loads the density model; nothing is compiled yet.

        Args:
          weights: a released density model by name, or a folder with one.
          eps: of the ball, whole levels 0..255. The paper's are 16 for CIFAR-10, 32 for
            Fashion-MNIST.
          grades: instead, an eps for each degree of suspicion, see
            `graded.read_grades`.
          layout: of images, "NHWC" or "NCHW".
          range: what black and white are; (0, 255) for levels. Floating images come
            back in the nearest of the 256 values between them.
          batch: images at a time, on each device of this process.
          cache: whether JAX is to keep all that this process compiles, see
            `parallel.enable_cache`.

        Raises:
          FileNotFoundError: no such model.
          TypeError, ValueError: it is no density model of images alone, or a setting
            cannot be.
        """
        self.options = {
            "weights": weights,
            "eps": eps,
            "grades": grades,
            "layout": layout,
            "range": range,
            "batch": batch,
            "cache": cache,
        }
        model, params, card = zoo.load_released(weights)
        if card["kind"] != "pixelcnn":
            raise ValueError(f"{weights} is a {card['kind']}, not a density model")
        if model.classes:
            raise ValueError(
                f"{weights} is class-conditional, and images come without labels"
            )
        if (eps is None) == (grades is None):
            raise ValueError("give either eps or grades")
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}: {layout!r}")
        self._black, self._white = _read_range(range)
        self._layout = layout
        self._shape = tuple(card["image_shape"])
        kind = purification.Purify if grades is None else graded.PurifyGraded
        if grades is not None:
            eps = int(graded.read_grades(grades)["eps"].max())
        settings = {"purify": {"eps": eps, "grades": grades}}
        self.defence, self.params = kind.build(base.Given(settings, model, params))
        self._arguments = self.params
        self._run = parallel.BatchMap(self._compute, batch)
        self._backwards: dict[str, parallel.BatchMap] = {}
        self._lock = threading.Lock()
        if cache:
            parallel.enable_cache()

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({options})"

    def __reduce__(self) -> tuple:
        return functools.partial(type(self), **self.options), ()

    def __deepcopy__(self, _: dict) -> "_Served":
        return self  # nothing in it changes

    @property
    def _in_levels(self) -> bool:
        """Whether the range of images is that of levels."""
        return (self._black, self._white) == (0, pixels.LEVELS - 1)

    def compile(self) -> float:
        """Compiles now rather than at the first images; returns the seconds it took."""
        shown = np.zeros((1, *self._shape), np.uint8)
        return self._ready(self._run, self._arguments, shown)

    def _ready(self, run: parallel.BatchMap, *arguments: Any) -> float:
        """Compiles what is not yet; only who needs that waits for it."""
        if run.program is None:
            with self._lock:
                run.compile(*arguments)
        return run.compile_seconds

    def _compute(self, params: base.Params, levels: jax.Array) -> base.Computed:
        return self.defence.compute(params, levels, None)

    def _computed(self, given: np.ndarray) -> dict[str, np.ndarray]:
        """What is computed of images as they were given."""
        levels = self._to_levels(given)
        self.compile()
        return self._run(self._arguments, levels)

    def _to_levels(self, given: np.ndarray) -> np.ndarray:
        """Checked `uint8` levels `[N, H, W, C]`."""
        height, width, channels = self._shape
        wanted = {"NHWC": self._shape, "NCHW": (channels, height, width)}
        if given.shape[1:] != wanted[self._layout]:
            fits = [name for name, shape in wanted.items() if shape == given.shape[1:]]
            hint = f'; layout="{fits[0]}" takes them' if fits else ""
            if given.ndim == 3:
                hint = "; of one image images[None]"
            expected = ", ".join(str(size) for size in wanted[self._layout])
            raise ValueError(f"images must be [N, {expected}]: {[*given.shape]}{hint}")
        pixels.check_some(given)
        given = self._turned(given)
        black, white = self._black, self._white
        if jnp.issubdtype(given.dtype, jnp.floating):
            share = (given.astype(np.float64) - black) / (white - black)
            levels = pixels.from_fractions(share)
            if not np.all((levels > -_SLACK) & (levels < pixels.LEVELS - 1 + _SLACK)):
                raise ValueError(
                    f"images must be from {black:g} to {white:g}: "
                    f"{given.min():g} to {given.max():g}"
                )
            given = np.clip(levels, 0, pixels.LEVELS - 1)
        elif not self._in_levels:
            raise TypeError(
                f"images from {black:g} to {white:g} must be floating: {given.dtype}"
            )
        if self._in_levels:
            pixels.check_images(given)
        return np.rint(given.astype(np.float64)).astype(np.uint8)

    def _from_levels(self, levels: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Levels `[N, H, W, C]` as images are given."""
        if not self._in_levels:
            share = levels / np.float64(pixels.LEVELS - 1)
            levels = self._black + share * (self._white - self._black)
        return self._turned(levels, back=True).astype(dtype)

    def _turned(self, images: Any, back: bool = False) -> Any:
        """From the layout of images to `[N, H, W, C]`, or `back`."""
        if self._layout == "NHWC":
            return images
        turned = images.transpose((0, 3, 1, 2) if back else (0, 2, 3, 1))
        return (
            np.ascontiguousarray(turned) if isinstance(turned, np.ndarray) else turned
        )


class Purifier(_Served):
    """PixelDefend for images of any library, layout and range, any number at a time.

    One program is compiled, for `batch` images on each device, when the first images
    come (or in `compile`); fewer are padded, more are cut, so what becomes of an image
    does not depend on how many come with it. Threads may share one.

    Attributes:
      defence: what is done, as `judge` and `behind` take it.
      params: with what.
    """

    def __call__(self, images: Any) -> Any:
        """Purifies images.

        Args:
          images: `[N, H, W, C]` or `[N, C, H, W]`, an array of numpy or JAX or a tensor
            of torch; floating in `range`, or whole levels where that is (0, 255).

        Returns:
          The purified ones, of the same kind, shape, type and device.

        Raises:
          TypeError: no such array, or of a type that does not go with the range.
          ValueError: another shape, none at all, or values outside the range; floating
            ones of at most 1 where it goes to 255.
        """
        given, restore = _opened("images", images)
        found = self._computed(given)
        return restore(self._from_levels(found["images"], given.dtype))

    def traced(self, images: jax.Array, *, gradient: str = "bpda") -> jax.Array:
        """Purified images within a program of JAX, which may be differentiated.

        Nothing is checked, padded or cut: the program is for as many images as there
        are, and those outside the range are clipped.

        Args:
          images: floating, as for `__call__`.
          gradient: see `Defence.view`.

        Returns:
          As `images`.
        """
        share = (self._turned(images) - self._black) / (self._white - self._black)
        levels = pixels.from_fractions(share.astype(jnp.float32))
        whole = jnp.clip(jnp.round(levels), 0, pixels.LEVELS - 1)
        levels = levels + jax.lax.stop_gradient(whole - levels)
        found = self.defence.view(self.params, levels, None, gradient)
        share = found / (pixels.LEVELS - 1)
        moved = self._black + share * (self._white - self._black)
        return self._turned(moved, back=True).astype(images.dtype)

    def pull_back(
        self, images: Any, towards: Any, *, gradient: str = "straight_through"
    ) -> Any:
        """The gradient of a loss in the images, from that in the purified ones.

        With it a framework of its own differentiates through the purifier, as an
        attacker does who knows it. With "bpda" it is `towards` itself; for the others a
        program is compiled at the first call, which takes a minute or more.

        Args:
          images: as for `__call__`, floating.
          towards: of the loss in what `__call__` returns, of the same shape.
          gradient: see `Defence.view`.

        Returns:
          As `images`.

        Raises:
          TypeError, ValueError: as for `__call__`; images that are not floating,
            another shape, or an unknown gradient.
        """
        if gradient not in self.defence.gradients:
            known = ", ".join(self.defence.gradients)
            raise ValueError(f"gradient must be one of {known}: {gradient!r}")
        given, restore = _opened("images", images)
        slopes, _ = _opened("towards", towards)
        if not jnp.issubdtype(given.dtype, jnp.floating):
            raise TypeError(f"whole levels have no gradient: images are {given.dtype}")
        if slopes.shape != given.shape:
            raise ValueError(
                f"towards must be {[*given.shape]}, as images: {[*slopes.shape]}"
            )
        if gradient == "bpda":
            return towards
        levels = self._to_levels(given).astype(np.float32)
        slopes = self._turned(slopes).astype(np.float32)
        with self._lock:
            if gradient not in self._backwards:
                back = functools.partial(self._pull_back, gradient)
                self._backwards[gradient] = parallel.BatchMap(back, self._run.batch)
        run = self._backwards[gradient]
        self._ready(run, self.params, levels[:1], slopes[:1])
        # The units of both sides are the same, so that of levels is right in any.
        found = self._turned(run(self.params, levels, slopes), back=True)
        return restore(found.astype(given.dtype))

    def _pull_back(
        self, gradient: str, params: base.Params, levels: jax.Array, towards: jax.Array
    ) -> jax.Array:
        def seen(levels: jax.Array) -> jax.Array:
            return self.defence.view(params, levels, None, gradient)

        _, back = jax.vjp(seen, levels)
        return back(towards)[0]


class Screened(NamedTuple):
    """What a `Screener` says of images, each of the kind of array that they came in.

    Attributes:
      images: purified, as from `Purifier`.
      bits_per_dim: of the images as they came, `[N]`.
      p_values: their ranks among the training images, `[N]`, see
        `detection.p_values`.
      suspicious: `[N]` bool.
    """

    images: Any
    bits_per_dim: Any
    p_values: Any
    suspicious: Any


class Screener(_Served):
    """Purifies as `Purifier` does and, by the same program, says how suspicious each
    image was.

    Attributes:
      defence: what is done, as `judge` and `behind` take it.
      params: with what.
      rejects: the share of clean images that may be called suspicious.
    """

    def __init__(self, weights: str, *, rejects: float = 0.05, **options: Any):
        """Loads the density model and the scores of its training images.

        Args:
          weights: as for `Purifier`.
          rejects: the share of clean images that may be called suspicious: those with a
            p-value of no more.
          **options: as for `Purifier`.

        Raises:
          FileNotFoundError, TypeError, ValueError: as for `Purifier`; the model has no
            scores of its training images; no such share.
        """
        super().__init__(weights, **options)
        if not 0 <= rejects <= 1:
            raise ValueError(f"rejects must be between 0 and 1: {rejects}")
        reference = zoo.load_reference(weights)
        if reference is None:
            raise ValueError(
                f"{weights} has no reference.npy, so there are no p-values (the mode "
                "release makes one)"
            )
        self.rejects = self.options["rejects"] = rejects
        self._arguments = self._arguments | {"reference": jnp.asarray(reference)}

    def __call__(self, images: Any) -> Screened:
        """Purifies images and judges them as they came; as for `Purifier`."""
        given, restore = _opened("images", images)
        found = self._computed(given)
        return Screened(
            restore(self._from_levels(found["images"], given.dtype)),
            restore(found["bits_per_dim"]),
            restore(found["p_values"]),
            restore(~(found["p_values"] > self.rejects)),
        )

    def _compute(self, params: base.Params, levels: jax.Array) -> base.Computed:
        computed = super()._compute(params, levels)
        given = computed["given_log_probs"]
        return {
            "images": computed["images"],
            "bits_per_dim": likelihood.to_bits_per_dim(given, levels.shape[1:]),
            "p_values": detection.p_values(given, params["reference"]),
        }


def _opened(name: str, images: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """Images as an array on the host, and what brings results back to where they were.

    Raises:
      TypeError: it is no array that we know.
    """
    if isinstance(images, np.ndarray):
        return images, lambda found: found
    if isinstance(images, jax.core.Tracer):
        raise TypeError(
            f"{name} are traced: within jit or grad call Purifier.traced, "
            "pixeldefend.purify or pixeldefend.behind"
        )
    if isinstance(images, jax.Array):

        def placed(found: np.ndarray) -> jax.Array:
            fits = images.committed and found.ndim == images.ndim
            alone = images.committed and len(images.devices()) == 1
            return jax.device_put(found, images.sharding if fits or alone else None)

        return np.asarray(images), placed
    torch = sys.modules.get("torch")  # whoever has a tensor has it already
    if torch is None or not isinstance(images, torch.Tensor):
        kind = type(images)
        raise TypeError(
            f"{name} must be an array of numpy or JAX, or a tensor of torch: "
            f"{kind.__module__}.{kind.__qualname__}"
        )

    def restore(found: np.ndarray) -> Any:
        dtype = images.dtype if found.shape == tuple(images.shape) else None
        return torch.from_numpy(found).to(images.device, dtype)

    narrow = images.dtype == torch.bfloat16  # which numpy has not
    return (images.float() if narrow else images).numpy(force=True), restore


def _read_range(given: tuple[float, float]) -> tuple[float, float]:
    """What black and white are.

    Raises:
      ValueError: not two finite numbers that ascend.
    """
    try:
        black, white = map(float, () if isinstance(given, str) else given)
    except (TypeError, ValueError):
        black = white = 0.0
    if not (np.isfinite(black) and np.isfinite(white) and black < white):
        raise ValueError(f"range must be two numbers that ascend: {given!r}")
    return black, white
