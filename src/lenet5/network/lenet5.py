"""LeNet-5, its layers named as in the paper.

Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE 86(11), 1998,
section II-B.

As tutorials build it: C5 is a linear layer on the flattened S4 (the same arithmetic as the paper's 5 x 5
convolution), pooling has no weights, and the output layer gives logits instead of Gaussian connections.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenet5.data.fashion_mnist import CLASSES, IMAGE_SIZE
from lenet5.network.convolution import output_size, receptive_field
from lenet5.params import ModelParams

KERNEL, POOL = 5, 2
C1_PADDING = 2  # the paper pads its 28 x 28 digits to 32 x 32 instead

# Table I of the paper: which maps of S2 each of the sixteen maps of C3 sees.
C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
}
POOLINGS: dict[str, type[nn.AvgPool2d] | type[nn.MaxPool2d]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


class TableConv2d(nn.Module):
    """Convolution in which each output map sees only the input maps its row of ``table`` names.

    (B, in, H, W) -> (B, len(table), H - K + 1, W - K + 1). Holds one K x K kernel per connection and no others.
    """

    rows: Tensor
    places: Tensor
    connected: Tensor

    def __init__(self, in_channels: int, table: tuple[tuple[int, ...], ...], kernel: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        connections = [out * in_channels + seen for out, row in enumerate(table) for seen in row]
        rows = torch.tensor(connections)
        places, connected = torch.zeros(2, len(table) * in_channels, dtype=torch.long)
        places[rows], connected[rows] = torch.arange(len(rows)), 1
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("connected", connected.bool()[:, None, None], persistent=False)
        self.weight = nn.Parameter(torch.empty(len(connections), kernel, kernel))
        self.bias = nn.Parameter(torch.empty(len(table)))
        fan_in, fan_out = (len(connections) * kernel**2 / maps for maps in (len(table), in_channels))
        nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)
        bound = (6 / (fan_in + fan_out)) ** 0.5  # Xavier-uniform, with the mean fans
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Cross-correlate with ``kernels()``."""
        return F.conv2d(x, self.kernels(), self.bias)

    def kernels(self) -> Tensor:
        """The kernels laid out among zeros, (len(table), in, K, K)."""
        dense: Tensor = _Spread.apply(self.weight, self.places, self.connected, self.rows)
        kernel = self.weight.shape[-1]
        return dense.view(len(self.bias), self.in_channels, kernel, kernel)


class _Spread(torch.autograd.Function):
    """Kernels put at their ``rows`` among zeros. Looked up both ways: a card would sort to write them in order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, places: Tensor, connected: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG004
        return torch.where(connected, weight[places], weight.new_zeros(()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[3])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        return gradient[rows], None, None, None


class LeNet5(nn.Module):
    """(B, 1, 28, 28) floats in [0, 1] -> (B, 10) logits.

    61,706 parameters with the full C3, 60,806 with the paper's.
    """

    def __init__(self, params: ModelParams) -> None:
        super().__init__()
        self.params = params
        pooling = POOLINGS[params.pooling]
        c1_size = output_size(IMAGE_SIZE, KERNEL, C1_PADDING)
        c3_size = output_size(c1_size // POOL, KERNEL)
        self.c1 = nn.Conv2d(1, 6, KERNEL, padding=C1_PADDING)
        self.s2 = pooling(POOL)
        self.c3 = nn.Conv2d(6, 16, KERNEL) if params.c3 == "full" else TableConv2d(6, C3_TABLE, KERNEL)
        self.s4 = pooling(POOL)
        self.c5 = nn.Linear(16 * (c3_size // POOL) ** 2, 120)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, len(CLASSES))
        self.activation = ACTIVATIONS[params.activation]()
        self.dropout = nn.Dropout(params.dropout)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, one row an image."""
        x = self.s2(self.activation(self.c1(x)))
        x = self.s4(self.activation(self.c3(x)))
        return self.classify(x.flatten(1))

    def c3_kernels(self) -> Tensor:
        """What C3 correlates S2's maps with, (16, 6, 5, 5)."""
        return self.c3.kernels() if isinstance(self.c3, TableConv2d) else self.c3.weight

    def classify(self, x: Tensor) -> Tensor:
        """C5, F6 and the output layer: (B, 400), the values of S4, -> (B, 10) logits."""
        x = self.dropout(self.activation(self.c5(x)))
        x = self.dropout(self.activation(self.f6(x)))
        logits: Tensor = self.output(x)
        return logits


@dataclass(frozen=True)
class Layer:
    """One row of the architecture table; the receptive field is in input pixels, 28 where it is everything."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    receptive_field: int


def layers(model: LeNet5) -> list[Layer]:
    """The architecture, layer by layer, as ``model`` really computes it on one image."""
    steps = {"c1": (KERNEL, 1), "s2": (POOL, POOL), "c3": (KERNEL, 1), "s4": (POOL, POOL)}
    shapes: dict[str, tuple[int, ...]] = {}
    names = [*steps, "c5", "f6", "output"]
    hooks = [
        getattr(model, name).register_forward_hook(
            lambda _module, _inputs, result, name=name: shapes.update({name: tuple(result.shape[1:])})
        )
        for name in names
    ]
    weight, training = model.f6.weight, model.training
    model.eval()  # dropout would draw from the random stream that training goes on with
    with torch.inference_mode():
        model(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE, device=weight.device, dtype=weight.dtype))
    model.train(training)
    for hook in hooks:
        hook.remove()
    fields = {name: receptive_field(list(steps.values())[: i + 1]) for i, name in enumerate(steps)}
    return [
        Layer(
            name.upper() if name != "output" else "Output",
            shapes[name],
            _count(model, name),
            fields.get(name, IMAGE_SIZE),
        )
        for name in names
    ]


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers in ``model``."""
    return sum(parameter.numel() for parameter in model.parameters())


def _count(model: LeNet5, name: str) -> int:
    return parameter_count(model.get_submodule(name))
