"""A network in torch, written from the paper, and ours of its weights."""

import re

import jax
import numpy as np
import pytest
from models import apply

import pixeldefend
from pixeldefend.density import conditionals

pytestmark = pytest.mark.slow  # where `.ci/run` has torch


def _network(features, depth, mixtures, channels, new):
    """PixelCNN++ in torch, by the paper; its parts are called as pclucas14's."""
    torch = pytest.importorskip("torch")
    nn, f = torch.nn, torch.nn.functional
    normed = nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm

    def concat_elu(x):
        return f.elu(torch.cat([x, -x], 1))

    class Conv(nn.Module):
        """Over rows up to the present one; columns around it, or up to it."""

        def __init__(self, inputs, outputs, extent, stride=1, shift=(0, 0)):
            super().__init__()
            self.conv = normed(nn.Conv2d(inputs, outputs, extent, stride))
            rows, columns = extent
            sides = (1, 1) if columns == 3 else (columns - 1, 0)
            self.padding, self.shift = (*sides, rows - 1, 0), shift

        def forward(self, x):
            y = self.conv(f.pad(x, self.padding))
            down, right = self.shift
            rows, columns = y.shape[2:]
            return f.pad(y[:, :, : rows - down, : columns - right], (right, 0, down, 0))

    class Spread(nn.Module):
        """Twice as many rows and columns; below and beside them it is cut off."""

        def __init__(self, extent):
            super().__init__()
            self.deconv = normed(nn.ConvTranspose2d(features, features, extent, 2))

        def forward(self, x):
            rows, columns = 2 * x.shape[2], 2 * x.shape[3]
            first = self.deconv.kernel_size[1] // 3
            return self.deconv(x)[:, :, :rows, first : first + columns]

    class Dense(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.lin_a = normed(nn.Linear(inputs, outputs))

        def forward(self, x):
            return self.lin_a(x.movedim(1, -1)).movedim(-1, 1)

    class Block(nn.Module):
        def __init__(self, extent, sides):
            super().__init__()
            self.conv_input = Conv(2 * features, features, extent)
            if sides:
                self.nin_skip = Dense(2 * sides * features, features)
            self.conv_out = Conv(2 * features, 2 * features, extent)

        def forward(self, x, *sides):
            y = self.conv_input(concat_elu(x))
            if sides:
                y = y + self.nin_skip(concat_elu(torch.cat(sides, 1)))
            value, gate = self.conv_out(concat_elu(y)).chunk(2, 1)
            return x + value * torch.sigmoid(gate)

    above, left = (2, 3), (2, 2)

    def blocks(count, sides):
        parts = {"u_stream": (above, sides), "ul_stream": (left, sides + 1)}
        return nn.ModuleDict(
            {
                name: nn.ModuleList([Block(*how) for _ in range(count)])
                for name, how in parts.items()
            }
        )

    class PixelCNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.u_init = Conv(channels + 1, features, above, shift=(1, 0))
            self.ul_init = nn.ModuleList(
                [
                    Conv(channels + 1, features, (1, 3), shift=(1, 0)),
                    Conv(channels + 1, features, (2, 1), shift=(0, 1)),
                ]
            )
            self.up_layers = nn.ModuleList([blocks(depth, 0) for _ in range(3)])
            self.down_layers = nn.ModuleList(
                [blocks(depth + more, 1) for more in (0, 1, 1)]
            )
            for name, extent in (("u", above), ("ul", left)):
                halves = [Conv(features, features, extent, 2) for _ in range(2)]
                setattr(self, f"downsize_{name}_stream", nn.ModuleList(halves))
                doubles = [Spread(extent) for _ in range(2)]
                setattr(self, f"upsize_{name}_stream", nn.ModuleList(doubles))
            outputs = mixtures * (10 if channels == 3 else 3)
            self.nin_out = Dense(features, outputs)

        def forward(self, x):
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            u, ul = self.u_init(x), sum(layer(x) for layer in self.ul_init)
            skips = [(u, ul)]
            for i, layer in enumerate(self.up_layers):
                for one, other in zip(layer.u_stream, layer.ul_stream, strict=True):
                    u = one(u)
                    ul = other(ul, u)
                    skips.append((u, ul))
                if i < 2:
                    u = self.downsize_u_stream[i](u)
                    ul = self.downsize_ul_stream[i](ul)
                    skips.append((u, ul))
            skips.pop()
            for i, layer in enumerate(self.down_layers):
                for one, other in zip(layer.u_stream, layer.ul_stream, strict=True):
                    u_skip, ul_skip = skips.pop()
                    u = one(u, u_skip)
                    ul = other(ul, u, ul_skip)
                if i < 2:
                    u = self.upsize_u_stream[i](u)
                    ul = self.upsize_ul_stream[i](ul)
            assert not skips
            return self.nin_out(f.elu(ul))

    generator = torch.Generator().manual_seed(0)
    network = PixelCNN().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.1, 0.5, generator=generator)
    return network


def _textbook(outputs, levels):
    """Log-probabilities `[B]` by equations 1 to 3 of PixelCNN++.

    Args:
      outputs: of the published codes, `[B, H, W, P]`.
      levels: `[B, H, W, C]`.
    """
    channels = levels.shape[-1]
    mixtures = outputs.shape[-1] // (10 if channels == 3 else 3)
    x = levels[..., None] / 127.5 - 1
    logits, rest = outputs[..., :mixtures], outputs[..., mixtures:]
    rest = rest.reshape(*levels.shape, -1, mixtures)
    means, scales = rest[..., 0, :].copy(), np.exp(np.maximum(rest[..., 1, :], -7.0))
    if channels == 3:
        red, green, blue = np.moveaxis(np.tanh(rest[..., 2, :]), -2, 0)
        means[..., 1, :] += red * x[..., 0, :]
        means[..., 2, :] += green * x[..., 0, :] + blue * x[..., 1, :]

    def below(edge):
        return 1 / (1 + np.exp(-(edge - means) / scales))

    high = np.where(levels[..., None] == 255, 1, below(x + 1 / 255))
    low = np.where(levels[..., None] == 0, 0, below(x - 1 / 255))
    joint = np.prod(high - low, axis=-2) * np.exp(logits)
    joint = joint.sum(-1) / np.exp(logits).sum(-1)
    return np.log(joint).sum((1, 2))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(
    "features, depth, mixtures, channels", [(8, 2, 5, 3), (6, 1, 4, 1)]
)
def test_a_network_in_torch_gives_the_same_outputs_and_likelihood(
    features, depth, mixtures, channels, new, rng, float64
):
    network = _network(features, depth, mixtures, channels, new)
    torch = pytest.importorskip("torch")
    images = rng.integers(0, 256, (2, 16, 8, channels), dtype=np.uint8)
    with torch.no_grad():
        units = torch.from_numpy(images / 127.5 - 1).movedim(-1, 1)
        theirs = network(units).movedim(1, -1).numpy()
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    kind = "original1" if new else "weight_v"
    assert any(re.search(rf"\.{kind}$", name) for name in arrays)
    model, params = pixeldefend.import_pixelcnn(arrays, dtype="float64")
    assert (model.features, model.depth, model.mixtures) == (features, depth, mixtures)
    ours = np.asarray(apply(model, params, images))
    state = np.split(ours, ours.shape[-1] // mixtures, -1)
    for_them = [state[0]]
    for channel in range(channels):
        for_them += state[1 + channel :: channels]
    np.testing.assert_allclose(np.concatenate(for_them, -1), theirs, atol=1e-12)
    log_prob = jax.jit(conditionals.log_prob, static_argnums=0)
    log_probs = log_prob(model.family, params["head"], ours, images).sum((1, 2))
    np.testing.assert_allclose(log_probs, _textbook(theirs, images), rtol=1e-9)
