"""The format ONNX, by jax2onnx; checked in onnxruntime."""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax import files, ops
from cifar_jax.export.program import INPUT, OUTPUTS, in_batches, in_float32, make_program
from cifar_jax.export.subject import Answer, Format, Subject

# Those that programs of recent years read.
_OPSET, _IR_VERSION = 21, 10


def _write(subject: Subject, path: Path) -> None:
    for name in ("jax2onnx", "onnx_ir"):  # plugins for other libraries; shapes within the graph
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # It prints which layers it replaces, and asks JAX for float64.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jax2onnx
        import onnx_ir
        from onnx_ir.passes.common import DeduplicateHashedInitializersPass

        shape = jax.export.symbolic_shape("batch, height, width, channels")
        size = (shape[0], *subject.trained.image_shape)
        with ops.stock_operations():
            model = jax2onnx.to_onnx(
                make_program(subject.trained),
                [jax.ShapeDtypeStruct(size, jnp.uint8)],
                model_name=subject.name,
                opset=_OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
            )
        # Each test-time view has brought its own copy of the weights.
        unique = DeduplicateHashedInitializersPass()(onnx_ir.from_proto(model))
        model = onnx_ir.to_proto(unique.model)
    model.ir_version = min(model.ir_version, _IR_VERSION)
    for name, value in subject.about.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    with files.replacing(path) as stream:
        stream.write(model.SerializeToString())


def _open(path: Path) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, probabilities = session.run(list(OUTPUTS), {INPUT: images})
        return logits, probabilities

    return in_batches(answer)


FORMAT = Format(
    file="model.onnx",
    libraries=("jax2onnx", "onnx", "onnxruntime"),
    adapt=in_float32,
    write=_write,
    open=_open,
    finish=lambda subject, path: None,
)
