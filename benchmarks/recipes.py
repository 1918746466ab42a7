"""Which changes of the speed record's recipe help: the part `recipe` of `benchmarks.studies`.

The changes follow those of Hiverge's "cifar10-speedrun", 2025, one by one: its learning rates,
momenta and number of epochs are left out, and the jitter is this program's own. Eight runs, with
two seeds each, have some of them and not the others: a fractional factorial design (Box, Hunter and
Hunter, "Statistics for Experimenters", 1978). A change is in four of the runs, and each other
change is in two of these and in two of the rest, so its effect is the difference of two means of
eight networks. That cannot be told from what two other changes do together beyond the sum of what
each does alone. The networks have about half of the recipe's width, and 10,000 training images are
set aside, which judge.
"""

from configs.speedrun import BIAS_RATE, HEAD_RATE

NUM_RUNS, NUM_SEEDS, HELD_OUT = 8, 2, 10_000
BATCH_SIZE = 1536
# SGD's rates are proportional to the batch, because the original's loss is a sum over it.
RATES = {"stem_bias": BIAS_RATE, "norm_biases": BIAS_RATE, "head": HEAD_RATE}

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
    f"batches of {BATCH_SIZE}, not 2000": (
        f"--config.batch_size={BATCH_SIZE}",
        *(
            f"--config.optimizer.groups.{name}.learning_rate={rate * BATCH_SIZE:g}"
            for name, rate in RATES.items()
        ),
    ),
    "SiLU, not GELU, in the groups": ("--config.model.activation=silu",),
    "kernels' norms restored in every eighth step only": (
        "--config.optimizer.name=benchmarks/rare_norms.py:muon",
    ),
    "stem's bias trained for 0.19 epochs, not 3": (
        "--config.optimizer.groups.stem_bias.num_epochs=0.19",
    ),
}
# A run has a change if its number, 0 to 7, and the change's pattern have an odd number of bits in
# common.
_PATTERNS = (1, 2, 4, 3, 5, 6)


def list_changes(run: int) -> list[str]:
    """Returns the changes that a run has, 0 to 7; the first has none."""
    both = zip(CHANGES, _PATTERNS, strict=True)
    return [name for name, pattern in both if (run & pattern).bit_count() % 2]


def list_flags(run: int) -> list[str]:
    """Returns the config and flags of a run; no two runs have a seed in common."""
    own = [flag for name in list_changes(run) for flag in CHANGES[name]]
    return [*BASE, f"--config.seed={NUM_SEEDS * run}", *own]
