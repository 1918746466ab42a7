"""`--mode=evaluate`: a trained model on a split of a data set."""

from pathlib import Path

from cifar_jax import config as config_lib
from cifar_jax import datasets, devices, scores, trained
from cifar_jax import workdir as workdir_lib
from cifar_jax.errors import UserError


def evaluate(
    workdir: Path,
    checkpoint: str = "last",
    split: str = "test",
    dataset_name: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
) -> scores.Scores:
    """Scores a trained model on a split; prints the scores and returns them.

    Args:
      workdir: of the run.
      checkpoint: "last", "best" or a step.
      split: "train", "test", "validation" (the one that the run carved) or the set's own name.
      dataset_name: another set with the same classes; None: the run's own.
      data_dir: where the data lie; None: as for the run.
      batch_size: images of a step; None: the run's own.
    """
    path = workdir / workdir_lib.CONFIG
    try:
        settings = config_lib.from_json(workdir_lib.read_json(path))
        batch_size = batch_size or settings.eval_batch_size
        data_dir = data_dir or settings.data.data_dir
        devices.configure(
            num_cpu_devices=settings.num_cpu_devices,
            deterministic=settings.get("deterministic", False),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the config of a run: {error}") from error
    run = trained.load(workdir, checkpoint)
    config = run.config
    name = dataset_name or config.data.name
    carved = config.data.validation_examples and name == config.data.name
    own = split in ("train", "validation") and carved
    wanted = ("train", "test") if own else (split,)
    dataset = datasets.load(name, data_dir, wanted)
    if own:
        dataset = datasets.carve_validation(dataset, config.data.validation_examples, config.seed)
    # TFDS gives numbers for names to a set that does not name its classes, such as cifar10_1.
    unnamed = tuple(map(str, range(len(run.class_names))))
    if dataset.class_names not in (run.class_names, unnamed):
        raise UserError(
            f"{name} has other classes ({len(dataset.class_names)}) than the model of {workdir} "
            f"({len(run.class_names)}): it can only be scored on a set with the same classes"
        )
    images, labels = dataset.splits[split]
    if images.shape[1:] != run.image_shape:
        raise UserError(
            f"{name} has images of {images.shape[1:]}, the model takes {run.image_shape}"
        )
    result = scores.score(run.predict_logits(images, batch_size), labels)
    print(f"{workdir}, checkpoint of step {run.step}: {scores.describe(split, result)}")
    return result
