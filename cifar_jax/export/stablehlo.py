"""The format StableHLO, by `jax.export`: a program that JAX runs without this package."""

from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cifar_jax import files, ops
from cifar_jax.export.program import INPUT, OUTPUTS, in_batches, in_float32, make_program
from cifar_jax.export.subject import Answer, Format, Subject

PLATFORMS = ("cpu", "cuda", "tpu")
_FILE, _EXAMPLE = "model.stablehlo", "run_stablehlo.py"

EXAMPLE = f"""from pathlib import Path

import numpy as np
from jax import export

file = Path(__file__).with_name("{_FILE}")
model = export.deserialize(bytearray(file.read_bytes()))
images = np.zeros((7, *model.in_avals[0].shape[1:]), np.uint8)  # any number of them
logits, probabilities = model.call(images)
print(probabilities)
"""


def _write(subject: Subject, path: Path) -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *subject.trained.image_shape), jnp.uint8)
    with ops.stock_operations():
        program = jax.jit(make_program(subject.trained))
        exported = jax.export.export(program, platforms=PLATFORMS)(images)
    with files.replacing(path) as stream:
        stream.write(exported.serialize())


def _open(path: Path) -> Answer:
    model = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, probabilities = map(np.asarray, model(images))
        return logits, probabilities

    return in_batches(answer)


def _finish(subject: Subject, path: Path) -> None:
    facts = {"jax": jax.__version__, "platforms": PLATFORMS, "input": INPUT, "outputs": OUTPUTS}
    files.write_json(path.with_name(f"{path.name}.json"), facts | subject.about)
    files.write_text(path.with_name(_EXAMPLE), EXAMPLE)


FORMAT = Format(
    file=_FILE,
    libraries=("flatbuffers",),
    adapt=in_float32,
    write=_write,
    open=_open,
    finish=_finish,
)
