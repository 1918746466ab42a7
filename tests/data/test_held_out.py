"""Which training images a run holds out, and which labels it replaces."""

import numpy as np
import pytest

from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from tests import tiny


def prepare(**fields):
    """Returns the digits as a run with these fields of `data` sees them."""
    values = {"validation_examples": 0} | fields
    config = tiny.config(**{f"data__{name}": value for name, value in values.items()})
    return datasets.load_run_data("digits", **datasets.run_options(config)).splits


def test_folds_share_no_image_and_hold_out_all():
    whole = datasets.load_dataset("digits").splits["train"]
    marks = {image.tobytes(): number for number, image in enumerate(whole.images)}
    assert len(marks) == 1437
    folds = []
    for fold in range(4):
        splits = prepare(validation_examples=400, validation_fold=fold)
        folds.append([marks[image.tobytes()] for image in splits["validation"].images])
        rest = [marks[image.tobytes()] for image in splits["train"].images]
        assert sorted(folds[-1] + rest) == list(range(1437))
        for split, expected in (("validation", folds[-1]), ("train", rest)):
            assert splits[split].origin["original_index"].tolist() == expected
            assert set(splits[split].origin["split"]) == {"train"}
    assert [len(fold) for fold in folds] == [400, 400, 400, 237]
    assert sorted(number for fold in folds for number in fold) == list(range(1437))
    words = "validation_fold is 4 but the 1437 training images have 4 parts of 400: .* 0 to 3"
    with pytest.raises(UserError, match=words):
        prepare(validation_examples=400, validation_fold=4)


def test_the_seed_of_the_data_takes_the_place_of_the_seed():
    config = tiny.config(seed=5, data__seed=0)
    digits = datasets.load_dataset("digits")
    options = datasets.run_options(config)
    ours = datasets.load_run_data("digits", **options).splits["validation"]
    theirs = datasets.carve_validation(digits, 1117, 0).splits["validation"]
    np.testing.assert_array_equal(ours.images, theirs.images)


def test_the_asked_share_of_labels_is_replaced_by_other_classes():
    clean = datasets.load_dataset("digits").splits["train"].labels
    noisy = prepare(label_noise=0.05)["train"].labels
    changed = np.flatnonzero(noisy != clean)
    assert len(changed) == round(0.05 * 1437)
    assert set((noisy[changed] - clean[changed]) % 10) == set(range(1, 10))
    assert (noisy.dtype, noisy.min(), noisy.max()) == (np.int32, 0, 9)
    assert changed[:5].tolist() == [3, 14, 18, 25, 35]  # never changes
    other = prepare(label_noise=0.05, seed=1)["train"].labels
    assert (np.flatnonzero(other != clean) != changed).any()


def test_a_held_out_image_keeps_its_replaced_label():
    together = prepare(label_noise=0.5, validation_examples=400)
    noisy = prepare(label_noise=0.5)["train"]
    given = {image.tobytes(): label for image, label in zip(*noisy[:2], strict=True)}
    images, labels, _ = together["validation"]
    assert [given[image.tobytes()] for image in images] == labels.tolist()
