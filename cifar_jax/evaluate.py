"""One evaluation, shared by the training loop and by `--mode=evaluate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import datasets, devices, steps
from cifar_jax import state as state_lib
from cifar_jax import workdir as workdir_lib
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.errors import UserError

# Images that lie on the devices at one time.
_CHUNK_BYTES = 64 * 2**20


class Scores(NamedTuple):
    """Of all images of a split: mean cross-entropy in nats, and how many answers are right."""

    loss: float
    accuracy: float
    num_correct: int
    num_images: int


def predict_logits(
    predict: Callable[..., jax.Array],
    variables: Any,
    images: np.ndarray,
    batch_size: int,
    mesh: Mesh,
) -> np.ndarray:
    """Returns the logits of every image, float32 [images, classes].

    The last batch, and every batch that the devices do not divide, is padded with black images
    whose logits are cut off again.

    Args:
      predict: the program of `steps.compile_predict`.
      variables: what the model is applied to.
      images: uint8 [images, height, width, channels].
      batch_size: images of one step.
      mesh: the devices.
    """
    num_images = len(images)
    per_device = -(-min(batch_size, num_images) // mesh.size)
    batch_size = per_device * mesh.size
    num_batches = -(-num_images // batch_size)
    most = max(1, _CHUNK_BYTES // (batch_size * int(np.prod(images.shape[1:]))))
    num_calls = -(-num_batches // most)
    batches = -(-num_batches // num_calls)
    rows = batches * batch_size
    logits = []
    for first in range(0, num_images, rows):
        chunk = np.asarray(images[first : first + rows])
        size = len(chunk)
        padding = [(0, rows - size)] + [(0, 0)] * (chunk.ndim - 1)
        chunk = np.pad(chunk, padding).reshape(batches, batch_size, *chunk.shape[1:])
        out = predict(variables, devices.put(mesh, chunk, PartitionSpec(None, "data")))
        logits.append(np.asarray(out).reshape(rows, -1)[:size])
    return np.concatenate(logits)


def score(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Counts every image once, in float64.

    Args:
      logits: [images, classes].
      labels: int [images].
    """
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    losses = log_sums - shifted[np.arange(len(labels)), labels]
    correct = int((logits.argmax(axis=1) == labels).sum())
    return Scores(float(losses.mean()), correct / len(labels), correct, len(labels))


def describe(split: str, scores: Scores) -> str:
    """Returns the line that tells a split's scores."""
    return (
        f"{split} accuracy {scores.accuracy:.2%} ({scores.num_correct} of {scores.num_images})  "
        f"loss {scores.loss:.4f}"
    )


class Trained(NamedTuple):
    """A model with its trained weights.

    Attributes:
      config: of its run.
      model: the network.
      variables: what the network is applied to; the averages, if the run kept them.
      class_names: of the logits.
      mean: of each channel of the training images, in units of pixel / 255.
      std: likewise.
      image_shape: (height, width, channels) of the training images.
      step: of the checkpoint.
    """

    config: ConfigDict
    model: nn.Module
    variables: Any
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, ...]
    step: int

    def predict(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Returns the class probabilities, float64 [images, classes].

        Args:
          images: uint8 [images, height, width, channels] of the training images' shape.
          batch_size: images that are computed at a time.

        Raises:
          UserError: the images have another shape or type.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            raise UserError(
                f"the model wants uint8 images of shape {('images', *self.image_shape)}, "
                f"not {images.dtype} {images.shape}"
            )
        mesh = devices.make_mesh()
        with devices.use_mesh(mesh):
            program = steps.compile_predict(self.model, mesh, self.mean, self.std)
            logits = predict_logits(program, self.variables, images, batch_size, mesh)
        logits = logits.astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)


def load(workdir: str | Path, checkpoint: str = "last") -> Trained:
    """Returns the model that a run trained; needs neither its config file nor its data.

    Args:
      workdir: of the run.
      checkpoint: "last", "best" (on the validation split) or a step.

    Raises:
      UserError: there is no run or no such checkpoint, or it is damaged.
    """
    workdir = Path(workdir)
    workdir_lib.read_json(workdir / workdir_lib.CONFIG)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoint yet")
    checkpoints = Checkpoints(workdir, writable=False)
    try:
        step = checkpoints.find(checkpoint)
        if step is None:
            raise UserError(f"{workdir} has no checkpoint yet")
        meta = checkpoints.meta(step)
        config = config_lib.from_json(meta["config"])
        data = meta["data"]
        model = state_lib.create_model(config, len(data["class_names"]))
        shape = tuple(data["image_shape"])
        abstract = jax.eval_shape(state_lib.make_variables(model, shape), jax.random.key(0))
        abstract = devices.abstract(devices.make_mesh(), dict(abstract))
        wanted = {"ema": abstract} if config.ema_decay else abstract
        restored = checkpoints.restore(step, wanted)
    finally:
        checkpoints.close()
    return Trained(
        config=config,
        model=model,
        variables=restored.get("ema", restored),
        class_names=tuple(data["class_names"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        image_shape=shape,
        step=step,
    )


def evaluate(
    workdir: Path,
    checkpoint: str = "last",
    split: str = "test",
    dataset_name: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
) -> Scores:
    """Scores a trained model on a split; prints the scores and returns them.

    Args:
      workdir: of the run.
      checkpoint: "last", "best" or a step.
      split: "train", "test", "validation" (the one that the run carved) or the set's own name.
      dataset_name: another set with the same classes; None: the run's own.
      data_dir: where the data lie; None: as for the run.
      batch_size: images of a step; None: the run's own.
    """
    settings = config_lib.from_json(workdir_lib.read_json(workdir / workdir_lib.CONFIG))
    batch_size = batch_size or settings.eval_batch_size
    devices.configure(batch_size, settings.num_cpu_devices)
    trained = load(workdir, checkpoint)
    config = trained.config
    name = dataset_name or config.data.name
    carved = config.data.validation_examples and name == config.data.name
    own = split in ("train", "validation") and carved
    wanted = ("train", "test") if own else ("train", split)
    dataset = datasets.load(name, data_dir or settings.data.data_dir, wanted)
    if own:
        dataset = datasets.carve_validation(dataset, config.data.validation_examples, config.seed)
    if dataset.class_names != trained.class_names:
        raise UserError(
            f"{name} has other classes ({len(dataset.class_names)}) than the model of {workdir} "
            f"({len(trained.class_names)}): it can only be scored on a set with the same classes"
        )
    images, labels = dataset.splits[split]
    if images.shape[1:] != trained.image_shape:
        raise UserError(
            f"{name} has images of {images.shape[1:]}, the model takes {trained.image_shape}"
        )
    mesh = devices.make_mesh()
    with devices.use_mesh(mesh):
        program = steps.compile_predict(trained.model, mesh, trained.mean, trained.std)
        logits = predict_logits(program, trained.variables, images, batch_size, mesh)
    scores = score(logits, labels)
    print(f"{workdir}, checkpoint of step {trained.step}: {describe(split, scores)}")
    return scores


def transplant(workdir: Path, state: state_lib.TrainState) -> state_lib.TrainState:
    """Returns a new state that starts with the weights of another run's last checkpoint.

    The layer "head" is left as it is where the number of classes differs.

    Raises:
      UserError: the other run's model is another one.
    """
    old = load(workdir).variables
    new = {"params": dict(state.params), "batch_stats": state.batch_stats}
    source = {"params": dict(old["params"]), "batch_stats": old.get("batch_stats", {})}

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.shape, tree)

    if "head" in new["params"] and "head" in source["params"]:
        head = new["params"]["head"]
        if shapes(head) != shapes(source["params"]["head"]):
            source["params"]["head"] = head
    if shapes(new) != shapes(source):
        raise UserError(f"init_from {workdir} holds another model than this run's")
    # Copies, so that donating this state leaves the other model's arrays alone.
    source = jax.tree.map(jax.numpy.copy, source)
    ema = jax.tree.map(jax.numpy.copy, source) if state.ema else {}
    return state.replace(params=source["params"], batch_stats=source["batch_stats"], ema=ema)
