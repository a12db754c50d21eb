"""Our parameters under the names, and in the layouts, of published PixelCNN++ codes.

Written from those codes' own construction, not from what reads them.
"""

import collections
import re

import numpy as np


def _layer(layer, order_inputs=None, order_outputs=None):
    """Kernel, scale and bias, with blocks of inputs or outputs in another order."""
    kernel, scale, bias = (
        np.asarray(layer[part]) for part in ("direction", "scale", "bias")
    )
    if order_inputs:
        blocks = np.split(kernel, len(order_inputs), axis=-2)
        kernel = np.concatenate([blocks[i] for i in order_inputs], axis=-2)
    if order_outputs:
        all_blocks = [
            np.split(a, len(order_outputs), axis=-1) for a in (kernel, scale, bias)
        ]
        kernel, scale, bias = (
            np.concatenate([blocks[i] for i in order_outputs], axis=-1)
            for blocks in all_blocks
        )
    return kernel, scale, bias


def _theirs(model, stream, name, layer):
    """A layer with its inputs and outputs in the order that both codes have."""
    if stream == "head" and model.channels == 3:
        # Weights; then mean, scale and coefficient of red, of green, of blue.
        return _layer(layer, order_outputs=(0, 1, 4, 7, 2, 5, 8, 3, 6, 9))
    if stream == "ul" and name[:2] == "up" and name.endswith(".side"):
        # Ours are u, -u, s, -s.
        return _layer(layer, order_inputs=(0, 2, 1, 3))
    return _layer(layer)


def as_tensorflow(model, params, *, average=False):
    """As openai/pixel-cnn keeps them: names count layers as they are built.

    Args:
      model: ours.
      params: of it.
      average: whether moving averages hold them, beside weights that do not count.
    """
    counters, found = collections.Counter(), {}

    def get_name(kind):
        counters[kind] += 1
        return f"model/{kind}_{counters[kind] - 1}"

    def put(kind, stream, name, layers):
        kernel, g, b = _theirs(model, stream, name, layers[name])
        if kind == "deconv2d":
            kernel = kernel.swapaxes(2, 3)
        keep(get_name(kind), V=kernel, g=g, b=b)

    def keep(scope, **variables):
        for name, value in variables.items():
            if average:
                found[f"{scope}/{name}/ExponentialMovingAverage"] = value
                value = np.full_like(value, np.nan)
            found[f"{scope}/{name}"] = value

    def gated_resnet(stream, level, block):
        layers = params[stream]["levels"][level]
        put("conv2d", stream, f"{block}.conv1", layers)
        if f"{block}.side" in layers:
            put("dense", stream, f"{block}.side", layers)
        put("conv2d", stream, f"{block}.conv2", layers)
        if f"{block}.label" in layers:
            table = np.asarray(layers[f"{block}.label"]["table"])
            keep(get_name("conditional_weights"), hw=table)

    streams = ("u", "ul")
    put("conv2d", "u", "input", params["u"])
    put("conv2d", "ul", "input_above", params["ul"])
    put("conv2d", "ul", "input_left", params["ul"])
    for level in (0, 1, 2):
        for rep in range(model.depth):
            for stream in streams:
                gated_resnet(stream, level, f"down{rep}")
        if level < 2:
            for stream in streams:
                put("conv2d", stream, "halve", params[stream]["levels"][level])
    for level, blocks in ((2, model.depth), (1, model.depth + 1), (0, model.depth + 1)):
        for rep in range(blocks):
            for stream in streams:
                gated_resnet(stream, level, f"up{rep}")
        if level > 0:
            for stream in streams:
                put("deconv2d", stream, "double", params[stream]["levels"][level - 1])
    put("dense", "head", "output", params["head"])
    # What the optimizer keeps has names outside of the scope.
    return found | {"Variable": np.float32(3.0), "Variable_1": np.zeros((2, 2))}


def as_torch(model, params, rng, *, new=False, prefix=""):
    """As pclucas14/pixel-cnn-pp keeps them.

    Args:
      model: ours.
      params: of it.
      rng: draws what weight norm does not tell.
      new: names of `torch.nn.utils.parametrizations`.
      prefix: in front of all names.
    """
    g_name, v_name = (
        ("parametrizations.weight.original0", "parametrizations.weight.original1")
        if new
        else ("weight_g", "weight_v")
    )
    found = {}

    def put(module, stream, name, layers):
        kernel, g, b = _theirs(model, stream, name, layers[name])
        if kernel.ndim == 2:
            v = kernel.T
        elif module.endswith(".deconv"):
            # A scale for each input, and a direction of any length.
            length = np.sqrt(np.sum(kernel**2, (0, 1, 2)))
            weight = (kernel * (g / length)).transpose(2, 3, 0, 1)
            g = np.sqrt(np.sum(weight**2, (1, 2, 3)))
            v = weight * rng.uniform(0.5, 2.0, (len(g), 1, 1, 1))
        else:
            v = kernel.transpose(3, 2, 0, 1)
        module = f"{prefix}{module}"
        found[f"{module}.{g_name}"] = g.reshape(-1, *(1,) * (v.ndim - 1))
        found[f"{module}.{v_name}"] = v
        found[f"{module}.bias"] = b

    put("u_init.conv", "u", "input", params["u"])
    put("ul_init.0.conv", "ul", "input_above", params["ul"])
    put("ul_init.1.conv", "ul", "input_left", params["ul"])
    parts = {"conv1": "conv_input.conv", "conv2": "conv_out.conv"}
    parts["side"] = "nin_skip.lin_a"
    for stream in ("u", "ul"):
        for level, layers in enumerate(params[stream]["levels"]):
            for name in layers:
                if name == "halve":
                    module = f"downsize_{stream}_stream.{level}.conv"
                elif name == "double":
                    module = f"upsize_{stream}_stream.{1 - level}.deconv"
                else:
                    way, k, part = re.fullmatch(r"(down|up)(\d+)\.(\w+)", name).groups()
                    # Their "up" is away from the image, and counts where it begins.
                    place = f"up_layers.{level}"
                    if way == "up":
                        place = f"down_layers.{2 - level}"
                    module = f"{place}.{stream}_stream.{k}.{parts[part]}"
                put(module, stream, name, layers)
    put("nin_out.lin_a", "head", "output", params["head"])
    return found
