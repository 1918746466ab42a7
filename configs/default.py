"""Every field that a run has, with its default. The other files state only their differences.

A duration is given in epochs (fractions are allowed) or in steps; where the field in steps is set,
it is the one that counts. A field whose default is a `placeholder` is unset until given a value.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cifar_jax.config.fields import GROUP_FIELDS, OPTIMIZER_OPTIONS


def get_config() -> ConfigDict:
    """Returns the default config, locked: unknown fields cannot be set."""
    config = ConfigDict()

    # Everything random (initial weights, order, augmentation, dropout) follows from the seed.
    config.seed = 0
    # Independent runs, of the seeds `seed`, `seed` + 1 and so on, that one program trains.
    config.num_seeds = 1
    # Whether a device computes its seeds at once, by jax.vmap, or else one after another. Unset:
    # one after another on a CPU, at once elsewhere.
    config.seeds_at_once = placeholder(bool)
    # The length of the training.
    config.num_epochs = 10.0
    config.num_steps = placeholder(int)
    # Images of one training step, over all devices.
    config.batch_size = 128
    # Images of one evaluation step; a number that the devices do not divide is padded.
    config.eval_batch_size = 500
    # Type of the computation, "float32" or "bfloat16"; parameters are always float32.
    config.dtype = "float32"
    # Whether a GPU gives the same bits again, by kernels that may be slower. A CPU always does.
    config.deterministic = False
    # Devices that a CPU is divided into; unset: the largest number up to the cores that divides
    # the batch (or the environment's JAX_NUM_CPU_DEVICES). Has no effect on a GPU or TPU.
    config.num_cpu_devices = placeholder(int)
    # Steps that one call of the compiled program makes at most; unset: about a second's worth on a
    # CPU, an epoch elsewhere. Signals, logs and checkpoints come between the calls.
    config.steps_per_call = placeholder(int)

    config.data = ConfigDict()
    # "digits" (embedded in scikit-learn) or any image classification set of TFDS by its name.
    config.data.name = "cifar10"
    # Where TFDS keeps its sets; unset: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    config.data.data_dir = placeholder(str)
    # Training images set aside, by the seed, as the split "validation". With 0 the test split is
    # shown during training but chooses nothing.
    config.data.validation_examples = 0
    # "device": all training images lie on every device. "host": each call's images are streamed.
    # "auto": on the device if they take at most a quarter of its memory.
    config.data.placement = "auto"

    config.augment = ConfigDict()
    # Mirror half of the images.
    config.augment.flip = False
    # Mirror each image every other epoch, one half of them in the first. Not together with `flip`.
    config.augment.alternating_flip = False
    # Pad by reflection with that many pixels, then cut a window of the old size. 0: off.
    config.augment.crop_padding = 0
    # Side in pixels of a square that is replaced by the mean colour. 0: off.
    config.augment.cutout = 0
    # Largest relative change of brightness, contrast, saturation; of the hue in turns (up to 0.5).
    config.augment.brightness = 0.0
    config.augment.contrast = 0.0
    config.augment.saturation = 0.0
    config.augment.hue = 0.0
    # RandAugment: operations for an image (0: off) and their strength, 0 to 30.
    config.augment.rand_augment_ops = 0
    config.augment.rand_augment_magnitude = 9
    # TrivialAugment: one random operation of random strength for an image.
    config.augment.trivial_augment = False
    # Mixup and CutMix: alpha of the Beta distribution. 0: off; both on: a coin decides each step.
    config.augment.mixup_alpha = 0.0
    config.augment.cutmix_alpha = 0.0

    # The model's name and, set by each config file, its own fields (those of its class).
    config.model = ConfigDict({"name": "simple_cnn"})

    config.loss = ConfigDict()
    # Share of the target that is spread evenly over all classes.
    config.loss.label_smoothing = 0.0

    config.optimizer = ConfigDict()
    # A function of optax that takes a learning rate (sgd, adam, adamw, lion, rmsprop, ...), or
    # "muon", or "frozen".
    config.optimizer.name = "adam"
    # The peak of the schedule.
    config.optimizer.learning_rate = 1e-3
    # What the peak is multiplied by where batch_size is not base_batch_size, for which it is given:
    # "none": 1; "linear": their ratio; "sqrt": the root of their ratio.
    config.optimizer.learning_rate_scaling = "none"
    config.optimizer.base_batch_size = 128
    # Passed to the optax function where set, an error if it does not take them: momentum, nesterov,
    # b1, b2, b3 and eps.
    for name, kind in OPTIMIZER_OPTIONS.items():
        config.optimizer[name] = placeholder(kind)
    config.optimizer.weight_decay = 0.0
    # Whether the decay is subtracted from the weights, times the learning rate, or else added to
    # the gradient (L2). Unset: the first where the function has a decay of its own (adamw, lion).
    # Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
    config.optimizer.decoupled_decay = placeholder(bool)
    # Whether the decay reaches biases and the parameters of norms too.
    config.optimizer.decay_norm_and_bias = False
    # Largest global norm of the gradient. 0: off.
    config.optimizer.clip_norm = 0.0
    # Parts that a batch is computed in, one after another, to save memory. The gradient is that of
    # the whole batch; but BatchNorm takes the statistics of each part, and what is random is drawn
    # for each part.
    config.optimizer.accumulation_steps = 1
    # Parameters that are trained in another way: a name for each group, and what `get_group` gives.
    # A parameter may be in one group at most.
    config.optimizer.groups = ConfigDict()

    config.schedule = ConfigDict()
    # "constant", "step", "cosine", "linear" or "one_cycle".
    config.schedule.name = "constant"
    # Linear rise from 0 to the peak (in "one_cycle": the length of its rising part).
    config.schedule.warmup_epochs = 0.0
    config.schedule.warmup_steps = placeholder(int)
    # The last learning rate over the peak, for "cosine", "linear" and "one_cycle".
    config.schedule.final_fraction = 0.0
    # "step": the epochs after which the rate is multiplied by `factor`.
    config.schedule.milestones = ()
    config.schedule.factor = 0.1

    # Decay per step of the exponential moving average of weights and batch statistics, which is then
    # what gets evaluated. 0: off. In the first steps the decay is at most (1 + step) / (10 + step).
    # Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    config.ema_decay = 0.0

    # Workdir of another run whose weights this one starts from ("": none). The head is left out
    # where the classes differ.
    config.init_from = ""

    # Evaluation while training; it also comes at the end. 0: only then.
    config.eval_every_epochs = 1.0
    config.eval_every_steps = placeholder(int)

    # Test-time augmentation, of the evaluation at the end of a run and of whatever is done with the
    # run later; what is evaluated while training is the image alone. "plain": none. "mirror": the
    # mean of the logits of the image and of its mirror image. "mirror_shift": the mean of that and
    # of the same for the image shifted by one pixel, up and left and down and right.
    config.test_time = ConfigDict()
    config.test_time.views = "plain"
    # Only images whose largest probability after mirroring is below this are shifted. Unset: all.
    config.test_time.confidence_threshold = placeholder(float)

    config.checkpoint = ConfigDict()
    # Besides one at the end and one at a signal. 0: only those.
    config.checkpoint.every_epochs = 1.0
    config.checkpoint.every_steps = placeholder(int)

    config.log = ConfigDict()
    # Curves for TensorBoard in WORKDIR/tensorboard.
    config.log.tensorboard = True
    # Pictures and a page of the finished run in WORKDIR/report.
    config.log.report = True
    # Trace of that many steps, from the given one on, in WORKDIR/profile. 0: none.
    config.log.profile_steps = 0
    config.log.profile_start = 10

    return config.lock()


def get_group(params: str) -> ConfigDict:
    """Returns a group of parameters for `optimizer.groups`.

    Args:
      params: a regular expression for the parameters' whole paths, such as ".*/bias".
    """
    # Fields as in `optimizer`, from which unset ones are taken; but a group with a name of its own
    # takes none of OPTIMIZER_OPTIONS. If `num_epochs` is set, the group's schedule ends after that
    # many epochs, and its learning rate is then 0.
    fields = {name: placeholder(kind) for name, kind in GROUP_FIELDS.items()}
    return ConfigDict(fields | {"params": params})
