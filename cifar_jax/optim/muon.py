"""Muon: momentum whose matrices are orthogonalised before each step.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, in the form of
Jordan's "airbench94_muon", 2024. optax's own `optax.contrib.muon` (0.2.8) differs: it takes the
kernels one by one, in the gradient's type, corrects the bias of its averages, scales steps by the
kernels' shapes, and does not keep the kernels' norms.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike

from cifar_jax.errors import UserError

# Three steps with these coefficients bring singular values to between about 0.3 and 1.2, unless
# they are below a hundredth of the matrix's norm.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_STEPS = 3
# So many multiplications more, six times over, take an accelerator as long as the start of some
# twenty kernels.
_MOST_MORE = 10**9


def muon(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.6, nesterov: bool = True
) -> optax.GradientTransformation:
    """Returns the optimizer, only for kernels whose scale is removed by a norm behind them.

    Each step first brings a kernel [..., in, out] to the Frobenius norm sqrt(out), then moves it by
    the learning rate times the orthogonalised momentum, whose norm is near sqrt(out) as well: so
    the learning rate is the relative change, and no weight decay is needed.

    Args:
      learning_rate: of each step, or a function of the step.
      momentum: the share of the earlier gradients' sum that each step keeps.
      nesterov: whether the step looks ahead by the new gradient.

    Raises:
      UserError: on the first use, a parameter is not a kernel.
    """
    return optax.chain(
        optax.GradientTransformation(
            _check_kernels, lambda updates, state, _=None: (updates, state)
        ),
        optax.trace(momentum, nesterov),
        optax.stateless(lambda updates, params: orthogonalize(updates)),
        optax.scale_by_learning_rate(learning_rate),
        optax.stateless(hold_norms),
    )


def _check_kernels(params: Any) -> optax.EmptyState:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim < 2:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"muon accepts only kernels: move {name} to one of optimizer.groups with another "
                "optimizer"
            )
    return optax.EmptyState()


def orthogonalize(tree: Any) -> Any:
    """Returns a tree of kernels, each with its singular values brought near one.

    A kernel [..., in, out] is a matrix from all its inputs to its outputs. Those of one shape go
    through the iteration together: on a CPU in float32, which is faster there; else in bfloat16,
    and smaller ones, enlarged by zeros, go with larger ones where that costs little.
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = lax.platform_dependent(
        leaves,
        cpu=lambda leaves: _orthogonalize(leaves, jnp.float32, 0),
        default=lambda leaves: _orthogonalize(leaves, jnp.bfloat16, _MOST_MORE),
    )
    return jax.tree.unflatten(structure, leaves)


def _orthogonalize(leaves: list[jax.Array], dtype: DTypeLike, most_more: int) -> list[jax.Array]:
    sizes = [(leaf.size // leaf.shape[-1], leaf.shape[-1]) for leaf in leaves]
    result = list(leaves)
    for (rows, columns), members in _group([(min(x), max(x)) for x in sizes], most_more):
        wide = []
        for place in members:
            matrix = _to_wide(leaves[place])
            have_rows, have_columns = matrix.shape
            edge = (0, rows - have_rows), (0, columns - have_columns)
            wide.append(jnp.pad(matrix, edge) if any(map(any, edge)) else matrix)
        found = newton_schulz(jnp.stack(wide), dtype)
        for place, matrix in zip(members, found, strict=True):
            have_rows, have_columns = sorted(sizes[place])
            result[place] = _from_wide(matrix[:have_rows, :have_columns], leaves[place])
    return result


def _group(
    shapes: list[tuple[int, int]], most_more: int
) -> list[tuple[tuple[int, int], list[int]]]:
    """Puts matrices (rows, columns) into groups of one shape; each is (shape, places).

    From the smallest on, a group joins the next if that is at most so many multiplications more for
    a product of its matrices with themselves.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for place, shape in enumerate(shapes):
        members.setdefault(shape, []).append(place)
    if not most_more:
        return list(members.items())

    def work(shape: tuple[int, int]) -> int:
        return shape[0] ** 2 * shape[1]

    groups: list[tuple[tuple[int, int], list[int]]] = []
    for shape in sorted(members, key=work):
        places = members[shape]
        if groups:
            before, others = groups[-1]
            joint = max(before[0], shape[0]), max(before[1], shape[1])
            more = len(others) * (work(joint) - work(before))
            more += len(places) * (work(joint) - work(shape))
            if more <= most_more:
                groups[-1] = joint, others + places
                continue
        groups.append((shape, places))
    return groups


def newton_schulz(matrices: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Brings the singular values of matrices near one by a polynomial of the fifth degree.

    Args:
      matrices: [number, rows, columns], best with rows <= columns.
      dtype: of the products.

    Returns:
      The matrices, in the shape and type in which they were given.
    """
    a, b, c = NEWTON_SCHULZ
    norms = jnp.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    x = (matrices / (norms + 1e-7)).astype(dtype)
    identity = jnp.eye(matrices.shape[1], dtype=dtype)[None]
    for _ in range(NUM_STEPS):
        # `a` is in the sum of the smaller matrices, so that no sum is as large as x.
        square = x @ x.mT
        x = (a * identity + b * square + c * square @ square) @ x
    return x.astype(matrices.dtype)


def _to_wide(kernel: jax.Array) -> jax.Array:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return matrix.T if len(matrix) > kernel.shape[-1] else matrix


def _from_wide(matrix: jax.Array, kernel: jax.Array) -> jax.Array:
    is_turned = kernel.size // kernel.shape[-1] > kernel.shape[-1]
    return (matrix.T if is_turned else matrix).reshape(kernel.shape)


def hold_norms(updates: Any, params: Any) -> Any:
    """Adds to the updates what brings each kernel back to the Frobenius norm sqrt(out).

    Args:
      updates: a tree of arrays in the kernels' shapes.
      params: the tree of kernels [..., in, out].
    """

    def hold(update, kernel):
        norm = jnp.sqrt(jnp.sum(kernel * kernel))
        return update + (jnp.sqrt(kernel.shape[-1]) / jnp.maximum(norm, 1e-12) - 1) * kernel

    return jax.tree.map(hold, updates, params)
