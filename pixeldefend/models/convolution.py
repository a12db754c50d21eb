"""Convolutions that are slow on a CPU by the usual way.

Between few channels:
A processor's vectors hold eight numbers and more, so that four channels leave its
convolution routines mostly idle. With the batch as the last axis the same sums are
products of a number and a long vector: measured on one core, 128 images of 28 x 28 x 4,
0.6 ms in place of 7, and a training step of the quartered ResNet-62 takes half the
time.

Stride two and first layers, backwards: the slope by the images is four convolutions
without gaps in place of one with; by images of one or three channels it is a product of
matrices whose parts are moved and summed. Measured on one core: a step of an attack on
the thesis's CNN A, 100 images, takes 0.13 s in place of 0.21.

With holes (dilation): values an even number of rows and columns apart make up images of
their own, which are convolved without holes.

Doubling (transposed, of stride two): the four values that each value becomes are so
many channels of a convolution, which are laid side by side afterwards: a tenth of the
time.

Backwards inside a loop: the slope by the images is a convolution by the kernel turned
around, which XLA does by its fast routine only where the turned kernel is an array of
its own. In a program without loops it makes one; in the body of a loop it reads the
kernel backwards instead and falls back on a slow routine. So the kernel is turned here,
by hand: measured on one core, all gradients of a quartered VGG take a third of the time
in an attack's loop.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

# Largest number of channel pairs that are summed one by one; from 64 on it loses.
_FEW = 16
_COLOURS = 3  # at most so many channels have images before the first convolution
_LAYOUT: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def convolve(
    images: chex.Array,
    kernel: chex.Array,
    strides: tuple[int, int],
    padding: Any,
    **options: Any,
) -> chex.Array:
    """`lax.conv_general_dilated`, faster where it can be; for `nn.Conv`.

    Where the stride is one or two it can be differentiated backwards only. No groups.

    Args:
      images: `[B, H, W, I]`.
      kernel: `[h, w, I, O]`.
      strides: of the kernel.
      padding: as for `lax`.
      **options: as for `lax`.

    Returns:
      `[B, H', W', O]`.
    """
    size = kernel.shape[:2]
    holes = options.get("rhs_dilation") or (1, 1)
    if tuple(holes) != (1, 1):
        even = all(n % h == 0 for n, h in zip(images.shape[1:3], holes, strict=True))
        odd = size[0] % 2 and size[1] % 2
        if even and odd and padding == "SAME" and tuple(strides) == (1, 1):
            return _with_holes(images, kernel, tuple(holes))
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)
    pairs = kernel.shape[2] * kernel.shape[3]
    whole = tuple(strides) == (1, 1) and padding in ("SAME", "VALID")
    if whole and padding == "SAME" and size == (3, 3) and pairs <= _FEW:
        return _narrow(images, kernel)
    if whole and size[0] % 2 and size[1] % 2:
        return _whole(images, kernel, padding)
    if tuple(strides) == (2, 2) and padding == "VALID":
        return _halved(images, kernel)
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)


def _with_holes(
    images: chex.Array, kernel: chex.Array, holes: tuple[int, int]
) -> chex.Array:
    """Padded "SAME", a kernel of odd sizes, sizes of images that `holes` divide."""
    batch, height, width, channels = images.shape
    down, across = holes
    parts = images.reshape(
        batch, height // down, down, width // across, across, channels
    )
    parts = parts.transpose(0, 2, 4, 1, 3, 5)
    found = convolve(
        parts.reshape(-1, *parts.shape[3:]), kernel, (1, 1), "SAME", **_LAYOUT
    )
    found = found.reshape(*parts.shape[:-1], kernel.shape[-1])
    return found.transpose(0, 3, 1, 4, 2, 5).reshape(batch, height, width, -1)


def double(images: chex.Array, kernel: chex.Array) -> chex.Array:
    """`lax.conv_transpose` of stride two, padded "SAME".

    Args:
      images: `[B, H, W, I]`.
      kernel: `[k, k, I, O]`, k odd.

    Returns:
      `[B, 2 H, 2 W, O]`.
    """
    size, _, _, outputs = kernel.shape
    before = (size + 1) // 2
    reach = before // 2
    # Along one axis, output 2 i + p is a sum over inputs i + offset.
    taps = [(p, t, (p + t - before) // 2) for p in (0, 1) for t in range(size)]
    taps = [tap for tap in taps if (tap[0] + tap[1] - before) % 2 == 0]
    chosen = np.zeros((2, 2 * reach + 1, size), kernel.dtype)
    for p, t, offset in taps:
        chosen[p, reach + offset, t] = 1
    wide = jnp.einsum(
        "pat,qbu,tuio->abipqo", chosen, chosen, kernel, precision="highest"
    )
    wide = wide.reshape(2 * reach + 1, 2 * reach + 1, images.shape[-1], -1)
    found = convolve(images, wide, (1, 1), "SAME", **_LAYOUT)
    return _side_by_side(found, outputs)


def _side_by_side(found: chex.Array, channels: int) -> chex.Array:
    """`[B, H, W, 2 * 2 * C]` as `[B, 2 H, 2 W, C]`: fours of channels as squares."""
    batch, height, width, _ = found.shape
    found = found.reshape(batch, height, width, 2, 2, channels)
    found = found.transpose(0, 1, 3, 2, 4, 5)
    return found.reshape(batch, 2 * height, 2 * width, channels)


def _usual(images: chex.Array, kernel: chex.Array, padding: Any = "SAME") -> chex.Array:
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, **_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _whole(images: chex.Array, kernel: chex.Array, padding: str) -> chex.Array:
    """Stride one and a kernel of odd sizes."""
    return _usual(images, kernel, padding)


def _whole_forward(
    images: chex.Array, kernel: chex.Array, padding: str
) -> tuple[chex.Array, tuple]:
    return _whole(images, kernel, padding), (images, kernel)


def _whole_backward(
    padding: str, saved: tuple, slope: chex.Array
) -> tuple[chex.Array, chex.Array]:
    images, kernel = saved

    def by_images(slope: chex.Array, kernel: chex.Array) -> chex.Array:
        return jax.vjp(lambda x: _usual(x, kernel, padding), images)[1](slope)[0]

    def by_images_on_cpu(slope: chex.Array, kernel: chex.Array) -> chex.Array:
        if kernel.shape[2] <= _COLOURS:
            return _spread(slope, kernel, images.shape[1:3], padding)
        turned = jax.lax.optimization_barrier(_turned(kernel))
        full = [(size - 1, size - 1) for size in kernel.shape[:2]]
        return _usual(slope, turned, "SAME" if padding == "SAME" else full)

    _, by_kernel = jax.vjp(lambda k: _usual(images, k, padding), kernel)
    found = jax.lax.platform_dependent(
        slope, kernel, cpu=by_images_on_cpu, default=by_images
    )
    return found, by_kernel(slope)[0]


_whole.defvjp(_whole_forward, _whole_backward)


def _spread(
    slope: chex.Array, kernel: chex.Array, size: tuple[int, int], padding: str
) -> chex.Array:
    """The slope by images of few channels: products first, moved and summed then."""
    batch, height, width, outputs = slope.shape
    high, wide, inputs, _ = kernel.shape
    flat = kernel.transpose(3, 0, 1, 2).reshape(outputs, -1)
    parts = (slope.reshape(-1, outputs) @ flat).reshape(
        batch, height, width, high, wide, inputs
    )
    found = jnp.zeros((batch, height + high - 1, width + wide - 1, inputs), parts.dtype)
    for i in range(high):
        for j in range(wide):
            found = found.at[:, i : i + height, j : j + width].add(parts[..., i, j, :])
    down, across = (high // 2, wide // 2) if padding == "SAME" else (0, 0)
    return found[:, down : down + size[0], across : across + size[1]]


@jax.custom_vjp
def _halved(images: chex.Array, kernel: chex.Array) -> chex.Array:
    """Stride two, not padded."""
    return _halved_usual(images, kernel)


def _halved_usual(images: chex.Array, kernel: chex.Array) -> chex.Array:
    return jax.lax.conv_general_dilated(images, kernel, (2, 2), "VALID", **_LAYOUT)


def _halved_forward(images: chex.Array, kernel: chex.Array) -> tuple[chex.Array, tuple]:
    return _halved(images, kernel), (images, kernel)


def _halved_backward(saved: tuple, slope: chex.Array) -> tuple[chex.Array, chex.Array]:
    images, kernel = saved

    def by_images(slope: chex.Array, kernel: chex.Array) -> chex.Array:
        return jax.vjp(lambda x: _halved_usual(x, kernel), images)[1](slope)[0]

    def by_images_on_cpu(slope: chex.Array, kernel: chex.Array) -> chex.Array:
        # Values 2 i + p of the images have met the taps 2 a + p: four convolutions of
        # the slope, one for each p along both axes, done as one.
        high, wide, inputs, outputs = kernel.shape
        taps = -(-high // 2), -(-wide // 2)
        room = [(0, 2 * n - size) for n, size in zip(taps, (high, wide), strict=True)]
        parts = jnp.pad(kernel, (*room, (0, 0), (0, 0)))
        parts = parts.reshape(taps[0], 2, taps[1], 2, inputs, outputs)
        parts = parts[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
        parts = jax.lax.optimization_barrier(parts.reshape(*taps, outputs, -1))
        full = [(n - 1, n - 1) for n in taps]
        found = _side_by_side(_usual(slope, parts, full), inputs)
        height, width = images.shape[1:3]
        found = found[:, :height, :width]
        # Rows and columns that no window reaches have no slope.
        missing = height - found.shape[1], width - found.shape[2]
        return jnp.pad(found, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))

    _, by_kernel = jax.vjp(lambda k: _halved_usual(images, k), kernel)
    found = jax.lax.platform_dependent(
        slope, kernel, cpu=by_images_on_cpu, default=by_images
    )
    return found, by_kernel(slope)[0]


_halved.defvjp(_halved_forward, _halved_backward)


def _turned(kernel: chex.Array) -> chex.Array:
    """By which a slope is convolved on its way back: `[h, w, O, I]`."""
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def _sums(images: chex.Array, kernel: chex.Array) -> chex.Array:
    """The same by shifted sums, batch last."""
    height, width = images.shape[1:3]
    x = jnp.transpose(images, (3, 1, 2, 0))
    # Without the barriers padding and sums are fused into whatever reads the result,
    # and done anew for each reader.
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))

    def sums(output: int) -> chex.Array:
        return sum(
            kernel[i, j, c, output] * x[c, i : i + height, j : j + width]
            for i in range(3)
            for j in range(3)
            for c in range(kernel.shape[2])
        )

    found = jnp.stack([sums(output) for output in range(kernel.shape[3])])
    return jnp.transpose(jax.lax.optimization_barrier(found), (3, 1, 2, 0))


@jax.custom_vjp
def _narrow(images: chex.Array, kernel: chex.Array) -> chex.Array:
    return jax.lax.platform_dependent(images, kernel, cpu=_sums, default=_usual)


def _forward(images: chex.Array, kernel: chex.Array) -> tuple[chex.Array, tuple]:
    return _narrow(images, kernel), (images, kernel)


def _backward(saved: tuple, slope: chex.Array) -> tuple[chex.Array, chex.Array]:
    images, kernel = saved
    # The kernel's slope is no convolution of few channels; the usual way is fast.
    _, by_kernel = jax.vjp(lambda k: _usual(images, k), kernel)
    return _narrow(slope, _turned(kernel)), by_kernel(slope)[0]


_narrow.defvjp(_forward, _backward)
