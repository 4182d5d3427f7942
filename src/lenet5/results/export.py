"""The trained model as ONNX and as a torch.export program, and the proof that both compute the same."""

import io
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lenet5.data.datasets import to_float
from lenet5.data.fashion_mnist import CLASSES, IMAGE_SIZE
from lenet5.errors import UserError
from lenet5.network.lenet5 import LeNet5

ONNX_BATCHES = (1, 2, 200, 10_000)
PROGRAM_BATCHES = (200, 10_000)  # image by image it takes ten times as long as ONNX Runtime
PREPROCESSING = "grey 28 x 28, light object on black, pixel / 255 as float32, shape (batch, 1, 28, 28)"

Run = Callable[[Tensor], NDArray[np.float32]]
"""Images (B, 1, 28, 28) -> logits (B, 10)."""


def to_program(model: LeNet5) -> torch.export.ExportedProgram:
    """The model as a ``torch.export`` program with a free batch dimension: what a pickled module was for, safely."""
    example = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        model.eval().to(memory_format=torch.contiguous_format), (example,), dynamic_shapes=(batch,)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # would ship the folders of whoever exported, and differ between them
    return program


def program_bytes(program: torch.export.ExportedProgram) -> bytes:
    """``program`` as the content of a ``.pt2`` file."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def to_onnx(program: torch.export.ExportedProgram, opset: int, metadata: Mapping[str, str]) -> bytes:
    """``program`` as a checked ONNX model: ``images`` (batch, 1, 28, 28) -> ``logits`` (batch, 10).

    Class names and preprocessing go into its metadata beside ``metadata``. Raises UserError where the checker
    refuses it.
    """
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    proto = exported.model_proto
    _name_free_dimension(proto.graph)
    facts = {"classes": json.dumps(CLASSES), "preprocessing": PREPROCESSING, **metadata}
    onnx.helper.set_model_props(proto, facts)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"the ONNX checker refuses the exported model (export.opset {opset}): {error}") from None
    content: bytes = proto.SerializeToString()
    return content


def _name_free_dimension(graph: onnx.GraphProto) -> None:
    """Call it ``batch``, as who opens the model expects; PyTorch gives the name of a symbol of its own."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = "batch"


def run_onnx(onnx_model: bytes) -> Run:
    """Compute logits with ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_model, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images.numpy()})[0]


def run_program(content: bytes) -> Run:
    """Compute logits with the program in a ``.pt2`` file, read back."""
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda images: module(images).detach().numpy()


def check_parity(
    name: str, run: Run, batches: Sequence[int], images: Tensor, expected: NDArray[np.float32], tolerance: float
) -> float:
    """Compare ``run`` with ``expected`` (n, 10) on all of ``images`` (n, 28, 28), once for each size of ``batches``.

    Returns the largest difference of a logit. Raises UserError where it exceeds ``tolerance``; within it, a predicted
    class can differ only where the two largest logits are no further apart than twice the tolerance.
    """
    largest = 0.0
    for batch in batches:
        actual = np.concatenate([run(to_float(part)) for part in images.split(batch)])
        difference = float(np.abs(expected - actual).max())
        if not difference <= tolerance:
            raise UserError(
                f"{name} disagrees with PyTorch in batches of {batch}: a logit differs by {difference:.2e} "
                f"(export.tolerance {tolerance:g})"
            )
        largest = max(largest, difference)
    return largest


def operators(onnx_model: bytes) -> list[str]:
    """The operator of each node, in order."""
    return [node.op_type for node in onnx.load_model_from_string(onnx_model).graph.node]
