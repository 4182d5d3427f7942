import re
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lenet5.network.convolution import Array, corr2d, pool2d
from lenet5.network.lenet5 import ACTIVATIONS, C3_TABLE, LeNet5, TableConv2d, layers, parameter_count
from lenet5.params import ModelParams
from lenet5.training.loop import make_model

CPU = torch.device("cpu")
ModelParamsOf = Callable[..., ModelParams]


@pytest.mark.parametrize(("c3", "total", "in_c3"), [("full", 61_706, 2416), ("paper", 60_806, 1516)])
def test_parameter_counts(model_params: ModelParamsOf, c3: str, total: int, in_c3: int) -> None:
    model = LeNet5(model_params(c3=c3))
    assert parameter_count(model) == total
    counts = {layer.name: layer.parameters for layer in layers(model)}
    assert counts == {"C1": 156, "S2": 0, "C3": in_c3, "S4": 0, "C5": 48_120, "F6": 10_164, "Output": 850}


@pytest.mark.parametrize("c3", ["full", "paper"])
def test_shapes_and_receptive_fields_of_the_layers(model_params: ModelParamsOf, c3: str) -> None:
    rows = layers(LeNet5(model_params(c3=c3)))
    assert {row.name: row.shape for row in rows} == {
        "C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5),
        "C5": (120,), "F6": (84,), "Output": (10,),
    }  # fmt: skip
    assert [row.receptive_field for row in rows] == [5, 6, 14, 16, 28, 28, 28]


def test_looking_at_the_layers_changes_nothing_about_a_training(model_params: ModelParamsOf) -> None:
    model = LeNet5(model_params(dropout=0.5))
    before = torch.get_rng_state()
    layers(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert model.dropout.training


def test_its_weights_load_into_the_tutorials_own_sequential_as_readme_says(
    model_params: ModelParamsOf, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LeNet5(model_params(activation="sigmoid", pooling="avg", c3="full", dropout=0.0)).eval()
    net = nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5, padding=2), nn.Sigmoid(), nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5), nn.Sigmoid(), nn.AvgPool2d(kernel_size=2, stride=2), nn.Flatten(),
        nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip
    (tmp_path / "models").mkdir()
    torch.save(model.state_dict(), tmp_path / "models/lenet5.pth")
    monkeypatch.chdir(tmp_path)
    (said,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(said, {"torch": torch, "net": net})  # noqa: S102 - README's own lines
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(net(images), model(images))


def test_c3_table_is_the_papers() -> None:
    assert Counter(map(len, C3_TABLE)) == {3: 6, 4: 9, 6: 1}
    assert Counter(seen for row in C3_TABLE for seen in row) == dict.fromkeys(range(6), 10)
    assert len({frozenset(row) for row in C3_TABLE}) == 16
    # Table I groups them: three maps in a row, four in a row, four with a gap, all; in a row means around the end too.
    runs = [{frozenset((start + step) % 6 for step in range(size)) for start in range(6)} for size in (3, 4)]
    assert {frozenset(row) for row in C3_TABLE[:6]} == runs[0]
    assert {frozenset(row) for row in C3_TABLE[6:12]} == runs[1]


@pytest.mark.parametrize("table", [C3_TABLE, ((2,), (0, 1, 2), (1, 0))], ids=["paper", "other"])
def test_table_convolution_is_a_dense_one_with_zeros_where_nothing_is_connected(
    table: tuple[tuple[int, ...], ...],
) -> None:
    inputs = 1 + max(seen for row in table for seen in row)
    layer = TableConv2d(inputs, table, kernel=3)
    kernels = iter(layer.weight.detach())
    dense = torch.zeros(len(table), inputs, 3, 3)
    for out, row in enumerate(table):
        for seen in row:
            dense[out, seen] = next(kernels)
    x = torch.rand(2, inputs, 7, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, dense, layer.bias))


def test_spreading_kernels_and_their_gradient_is_index_copy_bit_for_bit() -> None:
    torch.manual_seed(0)
    layer = TableConv2d(6, C3_TABLE, kernel=5)
    with torch.no_grad():
        layer.weight[0, 0] = torch.tensor([-0.0, torch.inf, torch.nan, 1e-45, -1e-45])
    expected = torch.zeros(96, 5, 5).index_copy(0, layer.rows, layer.weight).view(16, 6, 5, 5)
    found, gradient = layer.kernels(), torch.randn(16, 6, 5, 5)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    (ours,) = torch.autograd.grad(found, layer.weight, gradient)
    (theirs,) = torch.autograd.grad(expected, layer.weight, gradient)
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


def test_spreading_kernels_writes_to_no_index_which_a_card_would_sort_for() -> None:
    layer = TableConv2d(6, C3_TABLE, kernel=5)
    called = set()

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Recorded():
        layer.kernels().sum().backward()
    assert not {name for name in called if name.startswith(("index_copy", "index_put", "index_add", "scatter"))}


@pytest.mark.parametrize(("activation", "pooling", "c3"), list(product(ACTIVATIONS, ["avg", "max"], ["full", "paper"])))
def test_every_variant_gives_ten_logits_an_image(
    model_params: ModelParamsOf, activation: str, pooling: str, c3: str
) -> None:
    model = LeNet5(model_params(activation=activation, pooling=pooling, c3=c3))
    logits = model(torch.rand(3, 1, 28, 28))
    assert logits.shape == (3, 10)
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(("pooling", "reduce"), [("avg", np.mean), ("max", np.max)])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("leaky_relu", lambda x: np.maximum(x, 0.01 * x)),
    ],
)
def test_the_model_computes_what_the_numpy_reference_computes(
    model_params: ModelParamsOf,
    activation: str,
    function: Callable[[Array], Array],
    pooling: str,
    reduce: Callable[..., Array],
) -> None:
    model = LeNet5(model_params(activation=activation, pooling=pooling)).double()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    def convolve(maps: Array, name: str, padding: int) -> Array:
        kernels, biases = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return np.array(
            [
                sum(corr2d(image, k, padding) for image, k in zip(maps, kernel, strict=True)) + bias
                for kernel, bias in zip(kernels, biases, strict=True)
            ]
        )

    image = torch.rand(1, 1, 28, 28, dtype=torch.float64)
    x = image[0].numpy()
    for name, padding in (("c1", 2), ("c3", 0)):
        x = np.array([pool2d(m, 2, 2, reduce) for m in function(convolve(x, name, padding))])
    x = x.ravel()
    for name in ("c5", "f6"):
        x = function(weights[f"{name}.weight"] @ x + weights[f"{name}.bias"])
    expected = weights["output.weight"] @ x + weights["output.bias"]
    np.testing.assert_allclose(model(image)[0].detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("c3", ["full", "paper"])
def test_weights_start_within_xaviers_bounds_and_fill_them(model_params: ModelParamsOf, c3: str) -> None:
    model = make_model(model_params(c3=c3), 0, CPU)
    fans = {
        "c1": (25, 150),
        "c3": (150, 400) if c3 == "full" else (60 * 25 / 16, 60 * 25 / 6),
        "c5": (400, 120),
        "f6": (120, 84),
        "output": (84, 10),
    }
    for name, (fan_in, fan_out) in fans.items():
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.95 * bound < model.get_submodule(name).weight.abs().max() <= bound, name


@pytest.mark.parametrize("c3", ["full", "paper"])
def test_the_seed_alone_decides_the_weights(model_params: ModelParamsOf, c3: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(1)
        return torch.cat([weight.flatten() for weight in make_model(model_params(c3=c3), seed, CPU).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_dropout_takes_outputs_of_c5_and_f6_and_only_while_training(model_params: ModelParamsOf) -> None:
    model = LeNet5(model_params(dropout=0.5, activation="sigmoid"))
    dropped: dict[str, float] = {}
    for name in ("c3", "c5", "f6", "output"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _module, inputs, name=name: dropped.update({name: (inputs[0] == 0).float().mean().item()})
        )
    x = torch.rand(20, 1, 28, 28)
    model.train()(x)
    assert dropped == {"c3": 0, "c5": 0, "f6": pytest.approx(0.5, abs=0.1), "output": pytest.approx(0.5, abs=0.1)}
    model.eval()(x)
    assert not any(dropped.values())
