"""Functions with a gradient of their own that forward mode can differentiate too.

`jax.custom_vjp` forbids forward mode, and with it Hessian-vector products; `jax.custom_jvp` takes
the gradient to be the transpose of the tangent. Here the tangent is one operation, which is JAX's
own in forward mode and has the given function for its transpose.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def with_gradient(
    function: Callable[..., Any],
    plain: Callable[..., Any],
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Any, Any], Sequence[jax.Array | None]],
) -> Callable[..., Any]:
    """Returns `function` with its own gradient in reverse mode, and JAX's in forward mode.

    Args:
      function: takes arrays, or None instead of an array, and returns a tree of arrays.
      plain: computes the same; JAX differentiates it in forward mode.
      forward: returns the result of `function` and what `backward` needs.
      backward: takes that and the gradient by the result; returns the gradient by each argument,
        None if there is none. JAX differentiates it for second derivatives.
    """
    call = jax.custom_jvp(function)

    @call.defjvp
    def differentiate(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
        result, saved = forward(*primals)
        kept, kept_tree = jax.tree.flatten((primals, saved))
        leaves, tree = jax.tree.flatten(tangents)
        given = [tangent is not None for tangent in tangents]
        results = jax.tree.structure(result)

        def push(*values: Any) -> list[jax.Array]:
            primals, _ = jax.tree.unflatten(kept_tree, values[: len(kept)])
            tangents = jax.tree.unflatten(tree, values[len(kept) :])
            return jax.tree.leaves(jax.jvp(plain, primals, tangents)[1])

        def pull(*values: Any) -> list[jax.Array | None]:
            _, saved = jax.tree.unflatten(kept_tree, values[: len(kept)])
            gradients = backward(saved, jax.tree.unflatten(results, values[len(kept) :]))
            return [x for x, is_given in zip(gradients, given, strict=True) if is_given]

        out = _tangent.bind(*kept, *leaves, push=push, pull=pull, num_kept=len(kept))
        return result, jax.tree.unflatten(results, out)

    return call


_tangent = Primitive("tangent")
_tangent.multiple_results = True


def _evaluate(*values, push, **_):
    return push(*values)


def _shapes(*values, push, **_):
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in jax.eval_shape(push, *values)]


def _differentiate(values, tangents, *, push, **params):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return _tangent.bind(*values, push=push, **params), jax.jvp(push, values, tangents)[1]


def _transpose(gradients, *values, pull, num_kept, **_):
    gradients = pull(*values[:num_kept], *map(ad.instantiate_zeros, gradients))
    unknown = map(ad.is_undefined_primal, values[num_kept:])
    wanted = [x if is_unknown else None for x, is_unknown in zip(gradients, unknown, strict=True)]
    return [None] * num_kept + wanted


def _batch(axis, values, axes, *, push, pull, num_kept):
    def batched(function):
        def run(*values):
            every = (*axes[:num_kept], *[0] * (len(values) - num_kept))
            mapped = jax.vmap(function, every, axis_size=axis.size, spmd_axis_name=axis.spmd_name)
            return mapped(*values)

        return run

    pairs = zip(values[num_kept:], axes[num_kept:], strict=True)
    linear = [batching.bdim_at_front(x, place, axis.size) for x, place in pairs]
    params = {"push": batched(push), "pull": batched(pull), "num_kept": num_kept}
    results = _tangent.bind(*values[:num_kept], *linear, **params)
    return results, [0] * len(results)


_tangent.def_impl(_evaluate)
_tangent.def_abstract_eval(_shapes)
ad.primitive_jvps[_tangent] = _differentiate
ad.primitive_transposes[_tangent] = _transpose
batching.fancy_primitive_batchers[_tangent] = _batch
mlir.register_lowering(_tangent, mlir.lower_fun(_evaluate, multiple_results=True))
