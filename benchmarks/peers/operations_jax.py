"""The worker that times one convolution at a time in this project."""

import functools
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.peers import protocol
from cifar_jax import ops


def compile_repeated(
    function: Callable[..., jax.Array], arguments: tuple, repeats: int
) -> Callable[[], jax.Array]:
    """Returns a function that runs a compiled program of `repeats` calls of `function`."""

    def run(arguments, result):
        def body(i, carry):
            (first, *rest), _ = carry
            # Something must change, or XLA moves the call out of the loop.
            first = first.at[(0,) * first.ndim].set(i.astype(first.dtype))
            return (first, *rest), function(first, *rest)

        return lax.fori_loop(0, repeats, body, (arguments, result))[1]

    shape = jax.eval_shape(function, *arguments)
    zeros = jnp.zeros(shape.shape, shape.dtype)
    return functools.partial(jax.jit(run).lower(arguments, zeros).compile(), arguments, zeros)


def make_case(
    what: str, size: int, channels: int, features: int
) -> tuple[Callable[..., jax.Array], tuple]:
    """Returns an operation and its arguments; see `operations.py`."""
    keys = jax.random.split(jax.random.key(0), 3)
    if what == "matrix product":
        square = jax.random.normal(keys[0], (size, size))
        return (lambda a, b: a @ b), (square, square)
    images = jax.random.normal(keys[0], (64, size, size, channels))
    kernel = jax.random.normal(keys[1], (3, 3, channels, features))
    gradient = jax.random.normal(keys[2], (64, size, size, features))
    conv = functools.partial(
        ops.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    functions: dict[str, tuple[Callable[..., jax.Array], tuple]] = {
        "forward": (conv, (images, kernel)),
        "image gradient": (
            lambda g, k: jax.vjp(lambda x: conv(x, k), images)[1](g)[0],
            (gradient, kernel),
        ),
        "kernel gradient": (
            lambda x, g: jax.vjp(lambda k: conv(x, k), kernel)[1](g)[0],
            (images, gradient),
        ),
    }
    return functions[what]


def measure(what: str, size: int, channels: int, features: int, repeats: int) -> float:
    """Returns the seconds that an operation takes."""
    program = compile_repeated(*make_case(what, size, channels, features), repeats)
    program().block_until_ready()
    begun = time.perf_counter()
    program().block_until_ready()
    return (time.perf_counter() - begun) / repeats


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    protocol.serve({"measure": measure}, {"jax": jax.__version__})
