import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend.models import convolution


@pytest.mark.parametrize("channels", [(1, 4), (4, 4), (2, 8)])
def test_sums_equal_the_usual_convolution_and_its_slopes(float64, rng, channels):
    images = jnp.asarray(rng.normal(size=(3, 7, 6, channels[0])))
    kernel = jnp.asarray(rng.normal(size=(3, 3, *channels)))
    slope = jnp.asarray(rng.normal(size=(3, 7, 6, channels[1])))
    dimensions = ("NHWC", "HWIO", "NHWC")

    def sums(images, kernel):
        return convolution.convolve(
            images, kernel, (1, 1), "SAME", dimension_numbers=dimensions
        )

    for function in (sums, convolution._sums):
        np.testing.assert_allclose(
            function(images, kernel), convolution._usual(images, kernel), atol=1e-12
        )
    _, found = jax.vjp(sums, images, kernel)
    _, expected = jax.vjp(convolution._usual, images, kernel)
    for one, other in zip(found(slope), expected(slope), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(
    "kernel, strides",
    [((3, 3, 8, 8), (1, 1)), ((5, 5, 1, 4), (1, 1)), ((3, 3, 1, 4), (2, 2))],
)
def test_everything_else_is_left_to_the_usual_way(rng, kernel, strides):
    images = jnp.asarray(rng.normal(size=(2, 8, 8, kernel[2])), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=kernel), jnp.float32)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    np.testing.assert_array_equal(
        convolution.convolve(images, kernel, strides, "SAME", **options),
        jax.lax.conv_general_dilated(images, kernel, strides, "SAME", **options),
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size", [(3, 3), (5, 3), (1, 1)])
def test_turned_kernels_give_the_usual_slopes(float64, rng, size, padding):
    images = jnp.asarray(rng.normal(size=(2, 7, 6, 8)))
    kernel = jnp.asarray(rng.normal(size=(*size, 8, 5)))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def slopes(convolve):
        def loss(images, kernel):
            found = convolve(images, kernel, (1, 1), padding, **options)
            return jnp.sum(jnp.sin(found) ** 3)

        return jax.grad(loss, (0, 1))(images, kernel)

    found = slopes(convolution.convolve)
    expected = slopes(jax.lax.conv_general_dilated)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def _slopes_are_alike(rng, function, usual, images, kernel):
    """Values and both slopes, by a random slope of what comes out."""
    shape = jax.eval_shape(usual, images, kernel).shape
    slope = jnp.asarray(rng.normal(size=shape))

    @jax.jit
    def both(images, kernel):
        pairs = (jax.vjp(f, images, kernel) for f in (function, usual))
        return [(found, *back(slope)) for found, back in pairs]

    for one, other in zip(*both(images, kernel), strict=True):
        assert one.shape == other.shape and one.dtype == jnp.float64
        np.testing.assert_allclose(one, other, atol=1e-11)


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("shape, outputs", [((5, 4, 3), 2), ((1, 2, 1), 1)])
def test_doubling_is_a_transposed_convolution(float64, rng, size, shape, outputs):
    images = jnp.asarray(rng.normal(size=(2, *shape)))
    kernel = jnp.asarray(rng.normal(size=(size, size, shape[2], outputs)))

    def usual(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_transpose(
            images, kernel, (2, 2), "SAME", dimension_numbers=layout
        )

    _slopes_are_alike(rng, convolution.double, usual, images, kernel)


@pytest.mark.parametrize("size", [(3, 3), (7, 5), (2, 2)])
@pytest.mark.parametrize("shape", [(8, 6), (7, 6), (2, 4)])
def test_holes_are_the_usual_ones(float64, rng, size, shape):
    """Whether the kernel's size is odd or not, and whether the holes divide it."""
    images = jnp.asarray(rng.normal(size=(2, *shape, 2)))
    kernel = jnp.asarray(rng.normal(size=(*size, 2, 3)))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "rhs_dilation": (2, 2)}

    def ways(convolve):
        return lambda i, k: convolve(i, k, (1, 1), "SAME", **options)

    functions = map(ways, (convolution.convolve, jax.lax.conv_general_dilated))
    _slopes_are_alike(rng, *functions, images, kernel)


@pytest.mark.parametrize(
    "holes, strides, padding",
    [((3, 2), (1, 1), "SAME"), ((1, 2), (1, 1), "SAME"), ((2, 2), (2, 2), "SAME")]
    + [((2, 2), (1, 1), "VALID"), ((2, 2), (1, 1), ((1, 2), (3, 0)))],
)
def test_holes_go_with_any_stride_and_padding(float64, rng, holes, strides, padding):
    images = jnp.asarray(rng.normal(size=(2, 6, 8, 2)))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 3)))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "rhs_dilation": holes}

    def ways(convolve):
        return lambda i, k: convolve(i, k, strides, padding, **options)

    functions = map(ways, (convolution.convolve, jax.lax.conv_general_dilated))
    _slopes_are_alike(rng, *functions, images, kernel)


@pytest.mark.parametrize("size", [(9, 8), (10, 11)])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "strides, padding", [((2, 2), "VALID"), ((1, 1), "VALID"), ((1, 1), "SAME")]
)
@pytest.mark.slow
def test_slopes_of_stride_two_and_of_few_channels_are_lax_s(
    float64, rng, size, kernel, strides, padding
):
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    for inputs in (1, 4):
        images = jnp.asarray(rng.normal(size=(2, *size, inputs)))
        weights = jnp.asarray(rng.normal(size=(kernel, kernel, inputs, 17)))

        def ours(x, k):
            return convolution.convolve(x, k, strides, padding, **options)

        def theirs(x, k):
            return jax.lax.conv_general_dilated(x, k, strides, padding, **options)

        found, back = jax.vjp(ours, images, weights)
        expected, theirs_back = jax.vjp(theirs, images, weights)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        slope = jnp.asarray(rng.normal(size=found.shape))
        for one, other in zip(back(slope), theirs_back(slope), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-11)
