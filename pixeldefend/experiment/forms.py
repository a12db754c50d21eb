"""Images as other programs have them: of several libraries, layouts and ranges."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import pixels

LAYOUTS = ("NHWC", "NCHW")
_SLACK = 0.01  # levels: how far beyond black and white counts as rounding


@dataclasses.dataclass(frozen=True)
class Form:
    """How images are laid out, and what their values mean.

    Attributes:
      shape: of one image, `(H, W, C)`.
      layout: of several, one of `LAYOUTS`.
      black: the value of level 0.
      white: that of level 255.
    """

    shape: tuple[int, int, int]
    layout: str
    black: float
    white: float

    @classmethod
    def read(
        cls, shape: tuple[int, int, int], layout: str, given: tuple[float, float]
    ) -> "Form":
        """As a user says it.

        Args:
          shape: of one image, `(H, W, C)`.
          layout: of several.
          given: what black and white are.

        Raises:
          ValueError: no such layout, or not two finite numbers that ascend.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}: {layout!r}")
        try:
            black, white = map(float, () if isinstance(given, str) else given)
        except (TypeError, ValueError):
            black = white = 0.0
        if not (np.isfinite(black) and np.isfinite(white) and black < white):
            raise ValueError(f"range must be two ascending numbers: {given!r}")
        return cls(shape, layout, black, white)

    @property
    def in_levels(self) -> bool:
        """Whether the values are levels."""
        return (self.black, self.white) == (0, pixels.LEVELS - 1)

    def to_levels(self, given: np.ndarray) -> np.ndarray:
        """Checked `uint8` levels `[N, H, W, C]`."""
        height, width, channels = self.shape
        wanted = {"NHWC": self.shape, "NCHW": (channels, height, width)}
        if given.shape[1:] != wanted[self.layout]:
            fits = [name for name, shape in wanted.items() if shape == given.shape[1:]]
            hint = f'; layout="{fits[0]}" takes them' if fits else ""
            if given.ndim == 3:
                hint = "; for a single image give images[None]"
            expected = ", ".join(str(size) for size in wanted[self.layout])
            raise ValueError(f"images must be [N, {expected}]: {[*given.shape]}{hint}")
        pixels.check_some(given)
        given = self.turned(given)
        black, white = self.black, self.white
        if jnp.issubdtype(given.dtype, jnp.floating):
            share = (given.astype(np.float64) - black) / (white - black)
            levels = pixels.from_fractions(share)
            if not np.all((levels > -_SLACK) & (levels < pixels.LEVELS - 1 + _SLACK)):
                raise ValueError(
                    f"images must be from {black:g} to {white:g}: "
                    f"{given.min():g} to {given.max():g}"
                )
            given = np.clip(levels, 0, pixels.LEVELS - 1)
        elif not self.in_levels:
            raise TypeError(
                f"images from {black:g} to {white:g} must be floating: {given.dtype}"
            )
        if self.in_levels:
            pixels.check_images(given)
        return np.rint(given.astype(np.float64)).astype(np.uint8)

    def from_levels(self, levels: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Levels `[N, H, W, C]` as images are given."""
        if not self.in_levels:
            share = levels / np.float64(pixels.LEVELS - 1)
            levels = self.black + share * (self.white - self.black)
        return self.turned(levels, back=True).astype(dtype)

    def turned(self, images: Any, back: bool = False) -> Any:
        """From the layout of images to `[N, H, W, C]`, or `back`."""
        if self.layout == "NHWC":
            return images
        turned = images.transpose((0, 3, 1, 2) if back else (0, 2, 3, 1))
        return (
            np.ascontiguousarray(turned) if isinstance(turned, np.ndarray) else turned
        )


def opened(name: str, images: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """Images as an array on the host, and what brings results back to where they were.

    Raises:
      TypeError: it is no array that we know.
    """
    if isinstance(images, np.ndarray):
        return images, lambda found: found
    if isinstance(images, jax.core.Tracer):
        raise TypeError(
            f"{name} are traced: under jit or grad call Purifier.traced, "
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

    if images.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{name} require a gradient, which a bare purifier lacks: use "
            "pixeldefend.adapters.torch.Defended, or detach them"
        )

    def restore(found: np.ndarray) -> Any:
        dtype = images.dtype if found.shape == tuple(images.shape) else None
        return torch.from_numpy(found).to(images.device, dtype)

    narrow = images.dtype == torch.bfloat16  # which numpy has not
    return (images.float() if narrow else images).numpy(force=True), restore
