"""Purifying and screening images as other programs have them."""

import functools
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import detection, pixels
from pixeldefend.defences import base, graded, purification
from pixeldefend.density import likelihood
from pixeldefend.experiment import forms, parallel, zoo


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
            raise ValueError(
                "give either eps, such as 16, or grades, such as ((0.0, 16), (4.5, 24))"
            )
        self._form = forms.Form.read(tuple(card["image_shape"]), layout, range)
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

    def compile(self) -> float:
        """Compiles now rather than at the first images; returns the seconds it took."""
        shown = np.zeros((1, *self._form.shape), np.uint8)
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
        levels = self._form.to_levels(given)
        self.compile()
        return self._run(self._arguments, levels)


class Purifier(_Served):
    """PixelDefend for images from any library, in any layout, range and number.

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
        given, restore = forms.opened("images", images)
        found = self._computed(given)
        return restore(self._form.from_levels(found["images"], given.dtype))

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
        black, white = self._form.black, self._form.white
        share = (self._form.turned(images) - black) / (white - black)
        levels = pixels.from_fractions(share.astype(jnp.float32))
        whole = jnp.clip(jnp.round(levels), 0, pixels.LEVELS - 1)
        levels = levels + jax.lax.stop_gradient(whole - levels)
        found = self.defence.view(self.params, levels, None, gradient)
        moved = black + found / (pixels.LEVELS - 1) * (white - black)
        return self._form.turned(moved, back=True).astype(images.dtype)

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
        given, restore = forms.opened("images", images)
        slopes, _ = forms.opened("towards", towards)
        if not jnp.issubdtype(given.dtype, jnp.floating):
            raise TypeError(f"whole levels have no gradient: images are {given.dtype}")
        if slopes.shape != given.shape:
            raise ValueError(
                f"towards must be {[*given.shape]}, as images: {[*slopes.shape]}"
            )
        if gradient == "bpda":
            return towards
        levels = self._form.to_levels(given).astype(np.float32)
        slopes = self._form.turned(slopes).astype(np.float32)
        with self._lock:
            if gradient not in self._backwards:
                back = functools.partial(self._pull_back, gradient)
                self._backwards[gradient] = parallel.BatchMap(back, self._run.batch)
        run = self._backwards[gradient]
        self._ready(run, self.params, levels[:1], slopes[:1])
        # The units of both sides are the same, so that of levels is right in any.
        found = self._form.turned(run(self.params, levels, slopes), back=True)
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
    """Purifies as `Purifier` does, and scores how suspicious each
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
        given, restore = forms.opened("images", images)
        found = self._computed(given)
        return Screened(
            restore(self._form.from_levels(found["images"], given.dtype)),
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
