"""Evaluation covers every image exactly once, whatever the batch size and the devices."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

import cifar_jax
from cifar_jax.evaluation import logits as logits_lib
from cifar_jax.evaluation import scores
from cifar_jax.parallel import devices

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 10_007  # a prime: no batch size divides it

# Each image holds its number, and the "model" returns that number: an image that is left out,
# counted twice or swapped with another is noticed.
PROGRAM = f"""
import jax, numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh
import cifar_jax
from cifar_jax.evaluation import logits as logits_lib

class Reader(nn.Module):
    dtype: type = np.float32

    def __call__(self, images, train=False):
        digits = images.reshape(len(images), -1)[:, :2] * 255
        return digits.round()

logits_lib._CHUNK_BYTES = 5000  # 2,500 of these images at a time
numbers = np.arange({NUM_IMAGES})
images = np.zeros((len(numbers), 2, 1, 1), np.uint8)
images[:, 0, 0, 0], images[:, 1, 0, 0] = numbers // 256, numbers % 256
for num_devices in (1, 2, 8):
    devices = np.array(jax.devices()[:num_devices]).reshape(1, -1)
    mesh = Mesh(devices, ("seed", "data"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        predict = logits_lib.compile_predict(Reader(), mesh, (0.0,), (1.0,))
        for batch_size in (1, 7, 128, 10_000):
            part = images[:1000] if batch_size == 1 else images
            for given in (part, jax.device_put(part)):
                logits = logits_lib.predict_logits(predict, {{}}, given, batch_size, mesh)
                assert logits.shape == (len(part), 2)
                read = (logits @ [256, 1]).astype(int)
                np.testing.assert_array_equal(read, numbers[: len(part)])
            print(num_devices, batch_size)
"""


def test_all_numbers_of_images_share_a_few_programs():
    model = cifar_jax.load(ROOT / "tests" / "data" / "format-1")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 1), np.uint8)
    compiled = []

    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    expected = [model.predict(images[:size], 8)[:size] for size in (1, 2, 4, 8)][-1]
    jax.monitoring.register_event_duration_secs_listener(note)
    for size in range(1, len(images) + 1):
        answers = model.predict(images[:size], 8)
        assert answers.shape == (size, 10)
        np.testing.assert_allclose(answers[:8], expected[:size], atol=1e-6)
    assert compiled == []
    model.predict(images[:9], 16)
    assert compiled  # it does count them


def test_every_image_once_for_batch_sizes_and_devices():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PATH": "", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = [f"{n} {batch_size}" for n in (1, 2, 8) for batch_size in (1, 7, 128, 10_000)]
    assert done.stdout.splitlines() == wanted


def test_images_on_the_devices_are_not_copied_again(monkeypatch):
    laid, mesh = [], devices.make_mesh()
    images = np.zeros((10, 2, 1, 1), np.uint8)

    def put(mesh, chunk, spec):
        laid.append(type(chunk))
        return chunk

    monkeypatch.setattr(logits_lib.devices, "put", put)
    for given, kind in ((images, np.ndarray), (jax.device_put(images), jax.Array)):
        # Batches that fit, and some that do not.
        for batch_size in (10, 4):
            logits_lib.predict_logits(lambda _, x: x[..., 0, 0], {}, given, batch_size, mesh)
            assert issubclass(laid.pop(), kind)


@pytest.mark.parametrize("seed", range(5))
def test_the_score_counts_each_image_with_its_own_label(seed):
    """The losses are powers of two, so their sum shows how often each image was counted."""
    rng = np.random.default_rng(seed)
    losses = 2.0 ** rng.permutation(20)
    right = rng.random(20) < 0.5
    # Two classes far apart: the loss of the wrong one is the distance of the logits.
    labels = rng.integers(0, 2, 20)
    logits = np.zeros((20, 2), np.float32)
    logits[np.arange(20), np.where(right, labels, 1 - labels)] = losses + 100
    result = scores.score(logits, labels)
    assert (result.num_correct, result.num_images) == (right.sum(), 20)
    assert result.balanced_accuracy == pytest.approx(
        metrics.balanced_accuracy_score(labels, logits.argmax(axis=1))
    )
    assert result.loss * 20 == pytest.approx(((losses + 100) * ~right).sum(), abs=1e-6)


def test_balanced_accuracy_is_shown_where_it_says_something_else():
    """Class 1 does not occur; class 2 has one image, and it is not found."""
    labels = np.array([0, 0, 0, 2])
    result = scores.score(np.eye(3)[[0, 0, 0, 0]], labels)
    assert (result.accuracy, result.balanced_accuracy) == (0.75, 0.5)
    words = "test accuracy 75.00% (3 of 4)  balanced accuracy 50.00%  loss "
    assert scores.format_scores("test", result).startswith(words)
    even = scores.score(np.eye(3)[[0, 0, 1]], np.array([0, 2, 1]))
    assert scores.format_scores("test", even).startswith("test accuracy 66.67% (2 of 3)  loss ")
    assert scores.pool([result, result]) == result._replace(num_correct=6, num_images=8)


@pytest.mark.parametrize(("correct", "images"), [(9843, 10_000), (22, 360), (0, 5), (7, 7)])
def test_the_interval_of_an_accuracy_is_scipys(correct, images):
    own = scores.accuracy_interval(correct, images)
    theirs = stats.binomtest(correct, images).proportion_ci(method="wilson")
    np.testing.assert_allclose(own, theirs, rtol=1e-9, atol=1e-12)
