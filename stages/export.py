"""Stage export: ONNX and torch.export, each proven to compute what the weights compute. About 15 s."""

from beside import run_stage

from lenet5.data.datasets import load_test
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.files import digest, read_json, write_bytes, write_json
from lenet5.outs import EXPORT, ONNX, PROGRAM, TRAINING, WEIGHTS
from lenet5.params import Params
from lenet5.processors import use_own_share
from lenet5.results.evaluation import load_weights, predict
from lenet5.results.export import (
    ONNX_BATCHES,
    PROGRAM_BATCHES,
    check_parity,
    operators,
    program_bytes,
    run_onnx,
    run_program,
    to_onnx,
    to_program,
)


def main(params: Params) -> None:
    """Export, compare with PyTorch on all test images, and write the files only when all agree."""
    use_own_share()
    weights_digest = read_json(TRAINING)["weights_sha256"]
    model = load_weights(WEIGHTS, weights_digest, params.model)
    images = load_test(RAW_DIR).images
    expected = predict(model, images).numpy()
    exported = to_program(model)
    program = program_bytes(exported)
    onnx_model = to_onnx(exported, params.export.opset, {"weights_sha256": weights_digest})
    parity = {
        name: check_parity(name, run, batches, images, expected, params.export.tolerance)
        for name, run, batches in (
            ("onnx", run_onnx(onnx_model), ONNX_BATCHES),
            ("program", run_program(program), PROGRAM_BATCHES),
        )
    }
    write_bytes(PROGRAM, program)
    write_bytes(ONNX, onnx_model)
    nodes = operators(onnx_model)
    digests = {"weights_sha256": weights_digest, "onnx_sha256": digest(onnx_model), "program_sha256": digest(program)}
    write_json(EXPORT, {"parity": parity, "operators": nodes, **digests})
    print(f"{ONNX}: {', '.join(nodes)}")
    for name, difference in parity.items():
        print(f"{name}: every logit within {difference:.1e} of PyTorch's")


if __name__ == "__main__":
    run_stage("export", main)
