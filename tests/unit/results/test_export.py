import onnx

from lenet5.network.lenet5 import LeNet5
from lenet5.params import Params
from lenet5.results.export import to_onnx, to_program


def test_the_free_dimension_of_the_onnx_model_is_called_batch(params: Params) -> None:
    model = onnx.load_model_from_string(to_onnx(to_program(LeNet5(params.model)), 20, {}))
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    names = {
        axis.dim_param for value in (*graph.input, *graph.output, *graph.value_info)
        for axis in value.type.tensor_type.shape.dim if axis.dim_param
    }  # fmt: skip
    assert names == {"batch"}
