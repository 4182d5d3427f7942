"""Stage export: ONNX and torch.export, each proven to compute what the weights compute. About 15 s."""

from lenet5.datasets import load_test
from lenet5.evaluation import load_weights, predict
from lenet5.export import check_parity, operators, program_bytes, run_onnx, run_program, to_onnx, to_program
from lenet5.fashion_mnist import RAW_DIR
from lenet5.files import digest, write_bytes, write_json
from lenet5.outs import EXPORT, ONNX, PROGRAM, WEIGHTS
from lenet5.params import Params
from lenet5.stage import run_stage


def main(params: Params) -> None:
    """Export, compare with PyTorch on all test images, and write the files only when all agree."""
    model = load_weights(WEIGHTS, params.model)
    weights_digest = digest(WEIGHTS.read_bytes())
    images = load_test(RAW_DIR).images
    expected = predict(model, images).numpy()
    exported = to_program(model)
    program = program_bytes(exported)
    onnx_model = to_onnx(exported, params.export.opset, {"weights_sha256": weights_digest})
    parity = {
        name: check_parity(name, run, images, expected, params.export.tolerance)
        for name, run in (("onnx", run_onnx(onnx_model)), ("program", run_program(program)))
    }
    write_bytes(PROGRAM, program)
    write_bytes(ONNX, onnx_model)
    nodes = operators(onnx_model)
    write_json(EXPORT, {"parity": parity, "operators": nodes, "weights_sha256": weights_digest})
    print(f"{ONNX}: {', '.join(nodes)}")
    for name, difference in parity.items():
        print(f"{name}: every predicted class is PyTorch's, and every logit within {difference:.1e}")


if __name__ == "__main__":
    run_stage("export", main)
