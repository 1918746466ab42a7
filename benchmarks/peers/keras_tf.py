"""The worker of Keras on TensorFlow: float32 images in memory, `fit` and `predict`."""

import itertools
import os
import platform
import time
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.peers import protocol

WEIGHTS = ("kernel", "scale", "bias", "mean", "var")


def batch_norm(**options: Any) -> layers.Layer:
    return layers.BatchNormalization(**({"momentum": 0.9, "epsilon": 1e-5} | options))


def gelu(x):
    return keras.activations.gelu(x, approximate=False)


def mlp(x, rates):
    x = layers.Flatten()(x)
    for size in (500, 50):
        x = layers.Dense(size, activation="sigmoid")(x)
    return layers.Dense(protocol.NUM_CLASSES)(x)


def simple_cnn(x, rates):
    for _ in range(2):
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dropout(rates[0])(layers.Dense(512, activation="relu")(x))
    return layers.Dense(protocol.NUM_CLASSES)(x)


def vgg_bn(x, rates):
    for features in (32, 64, 128):
        for _ in range(2):
            x = layers.Conv2D(features, 3, padding="same", activation="relu")(x)
            x = batch_norm()(x)
        x = layers.Dropout(rates[0])(layers.MaxPooling2D()(x))
    x = batch_norm()(layers.Dense(1024, activation="relu")(layers.Flatten()(x)))
    x = layers.Dense(100, activation="relu")(layers.Dropout(rates[1])(x))
    return layers.Dense(protocol.NUM_CLASSES)(batch_norm()(x))


def resnet(x, rates):
    def conv(features, x, strides=1):
        if strides == 1:
            return layers.Conv2D(features, 3, padding="same", use_bias=False)(x)
        x = layers.ZeroPadding2D(1)(x)
        return layers.Conv2D(features, 3, strides=strides, use_bias=False)(x)

    x = layers.ReLU()(batch_norm()(conv(16, x)))
    for stage, block in itertools.product(range(3), range(3)):
        features = 16 * 2**stage
        strides = 2 if stage and not block else 1
        y = layers.ReLU()(batch_norm()(conv(features, x, strides)))
        y = batch_norm()(conv(features, y))
        if strides == 2:
            x = keras.ops.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((0, features // 2),))
        x = layers.ReLU()(layers.Add()([x, y]))
    return layers.Dense(protocol.NUM_CLASSES)(layers.GlobalAveragePooling2D()(x))


def speedrun(x, rates):
    x = layers.Conv2D(24, 2, activation=gelu)(x)
    for features in (64, 256, 256):
        for pool in (True, False):
            x = layers.Conv2D(features, 3, padding="same", use_bias=False)(x)
            x = layers.MaxPooling2D()(x) if pool else x
            x = gelu(batch_norm(scale=False, momentum=0.6, epsilon=1e-12)(x))
    x = layers.Flatten()(layers.MaxPooling2D(3)(x))
    return layers.Dense(protocol.NUM_CLASSES, use_bias=False)(x) / 256


def create(model: str, rates: tuple[float, ...]) -> keras.Model:
    images = layers.Input(protocol.image_shape(model))
    net = keras.Model(images, globals()[model](images, rates))
    net.compile(
        optimizer=keras.optimizers.SGD(protocol.LEARNING_RATE, momentum=protocol.MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return net


class Clock(keras.callbacks.Callback):
    """Times the batches of one call after the first, which pays for the call's set-up."""

    async_safe = True  # the next batch need not wait for this

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())

    def on_predict_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        return max(self.ends) - min(self.ends)


def prepare(model: str, batch_size: int) -> protocol.Runner:
    net = create(model, protocol.DROPOUT.get(model, ()))
    images, labels = protocol.make_data(model)
    images = protocol.normalize(images)

    def timed(run, num_steps: int) -> float:
        """Calls `run` with the images of a step more than asked for, until all are made."""
        seconds = 0.0
        while num_steps:
            number = min(num_steps, len(images) // batch_size - 1)
            clock = Clock()
            run(slice((number + 1) * batch_size), clock)
            seconds += clock.seconds()
            num_steps -= number
        return seconds

    def fit(rows: slice, clock: Clock) -> None:
        net.fit(images[rows], labels[rows], batch_size, verbose=0, callbacks=[clock])

    def predict(rows: slice, clock: Clock) -> None:
        net.predict(images[rows], batch_size, verbose=0, callbacks=[clock])

    return protocol.Runner(lambda number: timed(fit, number), lambda number: timed(predict, number))


def compute_losses(model: str, case: protocol.Case) -> dict[str, Any]:
    net = create(model, (0.0, 0.0))
    own = [layer for layer in net.layers if layer.weights]
    for layer, arrays in zip(own, case.layers, strict=True):
        layer.set_weights([arrays[name] for name in WEIGHTS if name in arrays])
    images, losses = protocol.normalize(case.images), []
    for _ in range(3):
        net.reset_metrics()
        losses.append(float(net.train_on_batch(images, case.labels)[0]))
    trainable = sum(int(np.prod(weight.shape)) for weight in net.trainable_weights)
    return {"parameters": trainable, "variables": net.count_params(), "losses": losses}


def train_once(path: str, num_steps: int, batch_size: int) -> None:
    """Trains and evaluates the simple CNN as the notebooks do: both splits as float32 arrays."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    train_images = arrays["train_images"].astype("float32") / 255
    test_images = arrays["test_images"].astype("float32") / 255
    net = create("simple_cnn", protocol.DROPOUT["simple_cnn"])
    rows = slice(num_steps * batch_size)
    net.fit(
        *(train_images[rows], arrays["train_labels"][rows], batch_size),
        validation_data=(test_images, arrays["test_labels"]),
        verbose=0,
    )


if __name__ == "__main__":
    protocol.serve(
        protocol.timing_handlers(prepare, compute_losses) | {"train_once": train_once},
        {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    )
