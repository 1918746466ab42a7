"""Which changes of the speed record's recipe help: the part `recipe` of `benchmarks.studies`.

The changes are those of Hiverge's "cifar10-speedrun", 2025. Eight runs, with two seeds each, have
some of them and not the others: a fractional factorial design (Box, Hunter and Hunter, "Statistics
for Experimenters", 1978). Each change is in four runs, and any two changes are together in two. So
every network says something about every change, provided that the changes do not depend on each
other. The networks have about half of the recipe's width, and 10,000 training images are set aside,
which judge.
"""

import optax

from cifar_jax.optim import muon

NUM_RUNS, NUM_SEEDS, HELD_OUT = 8, 2, 10_000
# The recipe's learning rates by SGD for a batch of 1536 instead of 2000: it sums over the batch.
RATES = {"stem_bias": 0.053 * 1536, "norm_biases": 0.053 * 1536, "head": 0.67 * 1536}

BASE = (
    "--config=configs/speedrun.py",
    "--config.model.group_features=(32,128,128)",
    *(f"--config.num_seeds={NUM_SEEDS}", f"--config.data.validation_examples={HELD_OUT}"),
    *("--config.data.seed=0", "--config.eval_every_epochs=0", "--config.test_time.views=plain"),
    "--config.log.report=False",
)
# Change -> the flags that make it.
CHANGES: dict[str, tuple[str, ...]] = {
    "label smoothing 0.09, not 0.2": ("--config.loss.label_smoothing=0.09",),
    "brightness and contrast jitter": (
        *("--config.augment.brightness=0.1", "--config.augment.contrast=0.1"),
    ),
    "batches of 1536, not 2000": (
        "--config.batch_size=1536",
        *(f"--config.optimizer.groups.{x}.learning_rate={rate:g}" for x, rate in RATES.items()),
    ),
    "SiLU, not GELU, in the groups": ("--config.model.activation=silu",),
    "kernels' norms held at each eighth step only": (
        "--config.optimizer.name=benchmarks/recipes.py:muon_norms_each_eighth",
    ),
    "stem's bias trained for 0.19 epochs, not 3": (
        "--config.optimizer.groups.stem_bias.num_epochs=0.19",
    ),
}
# A run has a change if the bits that its number, 0 to 7, has in common with this are odd in number.
_PATTERNS = (1, 2, 4, 3, 5, 6)


def list_changes(run: int) -> list[str]:
    """Returns the changes that a run has, 0 to 7; the first has none."""
    both = zip(CHANGES, _PATTERNS, strict=True)
    return [name for name, pattern in both if (run & pattern).bit_count() % 2]


def list_flags(run: int) -> list[str]:
    """Returns the config and flags of a run; no two runs have a seed in common."""
    own = [flag for name in list_changes(run) for flag in CHANGES[name]]
    return [*BASE, f"--config.seed={NUM_SEEDS * run}", *own]


def muon_norms_each_eighth(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.6, nesterov: bool = True
) -> optax.GradientTransformation:
    """Returns Muon as in `cifar_jax.optim.muon`, but only each eighth step restores the norms."""
    return optax.chain(
        optax.trace(momentum, nesterov),
        optax.stateless(lambda updates, params: muon.orthogonalize(updates)),
        optax.scale_by_learning_rate(learning_rate),
        optax.conditionally_transform(optax.stateless(muon.hold_norms), lambda step: step % 8 == 0),
    )
