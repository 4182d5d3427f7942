"""What the layers of the exported model make of one image, with ONNX Runtime alone: no PyTorch."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from lenet5.data.images import to_input
from lenet5.errors import UserError
from lenet5.network.convolution import Array

LAYERS = ("C1", "S2", "C3", "S4")
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "LeakyRelu": "leaky_relu"}
_POOLINGS = {"AveragePool": "avg", "MaxPool": "max"}


@dataclass(frozen=True)
class Inside:
    """A model that gives its maps besides its answer; ``kernels`` (6, 5, 5) are those of C1.

    ``activation`` and ``pooling`` are called as params.yaml calls them.
    """

    session: onnxruntime.InferenceSession
    kernels: Array
    activation: str
    pooling: str

    def maps(self, image: NDArray[np.uint8]) -> dict[str, Array]:
        """What each of ``LAYERS`` makes of an image (28, 28), C1 and C3 after the activation: (maps, height, width)."""
        _, *maps = self.session.run(None, {self.session.get_inputs()[0].name: to_input(image)})
        return {name: layer[0] for name, layer in zip(LAYERS, maps, strict=True)}


def look_inside(onnx_model: bytes, name: str) -> Inside:
    """The model with its maps as outputs. Raises UserError where it is not built as LeNet-5 is."""
    model = onnx.load_model_from_string(onnx_model)
    graph = model.graph
    maker = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    try:
        first, second = (node for node in graph.node if node.op_type in _POOLINGS)
        activation = maker[first.input[0]]
        convolution = maker[activation.input[0]]
        kernels = onnx.numpy_helper.to_array(weights[convolution.input[1]])[:, 0]
        named = _ACTIVATIONS[activation.op_type], _POOLINGS[first.op_type]
    except (ValueError, KeyError, IndexError):
        raise UserError(
            f"{name}: no C1, S2, C3 and S4 to look into; `dvc repro --force --single-item export` makes one with them"
        ) from None
    for inner in (first.input[0], first.output[0], second.input[0], second.output[0]):
        graph.output.append(onnx.helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return Inside(session, kernels, *named)
