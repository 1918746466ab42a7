"""An optimizer for the trials in `recipes`; it has a file of its own, which runs keep."""

import optax

from cifar_jax.optim.muon import hold_norms, orthogonalize


def muon(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.6, nesterov: bool = True
) -> optax.GradientTransformation:
    """Returns Muon, except that only every eighth step, from the first on, restores the norms."""
    return optax.chain(
        optax.trace(momentum, nesterov),
        optax.stateless(lambda updates, params: orthogonalize(updates)),
        optax.scale_by_learning_rate(learning_rate),
        optax.conditionally_transform(optax.stateless(hold_norms), lambda step: step % 8 == 0),
    )
