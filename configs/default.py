"""Every field of a config, with its default. The other files state only their differences.

A duration is given in epochs (fractions are allowed) or in steps; if the field in steps is set, the
one in epochs is ignored. A field whose default is a `placeholder` is unset until given a value.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cifar_jax.config.fields import GROUP_FIELDS, OPTIMIZER_OPTIONS


def get_config() -> ConfigDict:
    """Returns the default config, locked: unknown fields cannot be set."""
    config = ConfigDict()

    # Everything random (initial weights, order, augmentation, dropout) follows from the seed.
    config.seed = 0
    # Independent runs that one program trains, with the seeds `seed`, `seed` + 1 and so on.
    config.num_seeds = 1
    # Whether a device trains its seeds all at once, by jax.vmap, or one after another. Unset: one
    # after another on a CPU, at once elsewhere.
    config.seeds_at_once = placeholder(bool)
    # The length of the training.
    config.num_epochs = 10.0
    config.num_steps = placeholder(int)
    # Images per training step, over all devices.
    config.batch_size = 128
    # Images per evaluation step; padded to a multiple of the number of devices.
    config.eval_batch_size = 500
    # Type of the computation, "float32" or "bfloat16"; parameters are always float32.
    config.dtype = "float32"
    # Whether a GPU always gives the same bits, by kernels that may be slower. A CPU always does.
    config.deterministic = False
    # Devices that a CPU is divided into; unset: the environment's JAX_NUM_CPU_DEVICES, else the
    # largest number up to the cores that divides the batch. Has no effect on a GPU or TPU.
    config.num_cpu_devices = placeholder(int)
    # The most steps per call of the compiled program; unset: about a second's worth on a CPU, an
    # epoch elsewhere. Signals, logs and checkpoints are handled between the calls.
    config.steps_per_call = placeholder(int)

    config.data = ConfigDict()
    # "digits" (comes with scikit-learn), "folder" (of pictures) or the name of any image
    # classification set of TFDS.
    config.data.name = "cifar10"
    # For "folder": PATH with PATH/CLASS/*.jpg, or PATH/train/CLASS, PATH/val/CLASS and
    # PATH/test/CLASS.
    config.data.path = placeholder(str)
    # The images' height and width, and their channels: 1, 3 or 4 (with transparency). Unset: those
    # of the set, for a folder 32 and 3.
    config.data.image_size = placeholder(int)
    config.data.channels = placeholder(int)
    # The share of each class of a folder that is for testing, chosen by the seed, if there is no
    # PATH/test; and the most pictures that may be unreadable.
    config.data.test_fraction = 0.2
    config.data.max_broken = 10
    # Where TFDS keeps its sets; unset: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    config.data.data_dir = placeholder(str)
    # The training and test images, in TFDS's notation: "train[:90%]", "train+validation". Unset,
    # the test images are the set's split "test", or, if that is missing or has no labels, a tenth
    # of the training images, chosen by `data.seed`.
    config.data.train_split = "train"
    config.data.test_split = placeholder(str)
    # Training images set aside, at random, as the split "validation". With 0 it is the
    # set's split of that name; if there is none, the test split is shown during training but
    # decides nothing.
    config.data.validation_examples = 0
    # Which of the shuffled training images are held out: 0 takes the first `validation_examples` of
    # them, 1 the next ones and so on, so that the folds of a cross-validation share none.
    config.data.validation_fold = 0
    # The share of the training labels, held-out images included, that are replaced by another class
    # at random: to study wrong labels.
    config.data.label_noise = 0.0
    # The seed that chooses the held-out images and the replaced labels; unset: `seed`, but 0 for
    # test images that are held out, so that all runs have the same.
    config.data.seed = placeholder(int)
    # "device": all training images are on every device. "host": each call's images are streamed.
    # "auto": on the device if they take at most a quarter of its memory.
    config.data.placement = "auto"

    config.augment = ConfigDict()
    # Mirror half of the images.
    config.augment.flip = False
    # Mirror each image in every other epoch, half of them in the first. Not together with `flip`.
    config.augment.alternating_flip = False
    # Pad by reflection with this many pixels, then cut out a random window of the old size. 0: off.
    config.augment.crop_padding = 0
    # Side, in pixels, of a square that is replaced by the mean colour. 0: off.
    config.augment.cutout = 0
    # Largest relative change of brightness, contrast and saturation, and largest change of the hue,
    # in turns of the colour circle (at most 0.5). 0: off.
    config.augment.brightness = 0.0
    config.augment.contrast = 0.0
    config.augment.saturation = 0.0
    config.augment.hue = 0.0
    # RandAugment: operations per image (0: off) and their strength, 0 to 30.
    config.augment.rand_augment_ops = 0
    config.augment.rand_augment_magnitude = 9
    # TrivialAugment: one random operation of random strength per image.
    config.augment.trivial_augment = False
    # Your own, "FILE.py:FUNCTION": (key, images) -> images, for uint8 batches, after the others.
    config.augment.custom = ""
    # Mixup and CutMix: alpha of the Beta distribution. 0: off; both on: one of them, drawn each
    # step.
    config.augment.mixup_alpha = 0.0
    config.augment.cutmix_alpha = 0.0

    # The model's name and, in each config file, its own options (the fields of its class). A model
    # of your own is named as FILE.py:CLASS or PACKAGE.MODULE:CLASS.
    config.model = ConfigDict({"name": "simple_cnn"})

    config.loss = ConfigDict()
    # The share of the target probability that is spread evenly over all classes.
    config.loss.label_smoothing = 0.0
    # Factors of the classes in the loss: a number for each class, in their order, or "balanced":
    # the more training images a class has, the smaller its factor. Unset: all classes count the
    # same.
    config.loss.class_weights = placeholder(object)

    config.optimizer = ConfigDict()
    # A function of optax that takes a learning rate (sgd, adam, adamw, lion, rmsprop, ...), "muon",
    # "frozen", or a function of your own, as FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.
    config.optimizer.name = "adam"
    # The peak of the schedule.
    config.optimizer.learning_rate = 1e-3
    # The factor that adapts the peak, given for base_batch_size, to batch_size: "none": 1;
    # "linear": the ratio of the two; "sqrt": the square root of their ratio.
    config.optimizer.learning_rate_scaling = "none"
    config.optimizer.base_batch_size = 128
    # Passed to the optax function where set (an error if it does not take them): momentum,
    # nesterov, b1, b2, b3 and eps.
    for name, kind in OPTIMIZER_OPTIONS.items():
        config.optimizer[name] = placeholder(kind)
    config.optimizer.weight_decay = 0.0
    # True: the decay, times the learning rate, is subtracted from the weights. False: it is added
    # to the gradient (L2). Unset: True where the function has its own decay (adamw, lion), else
    # False. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
    config.optimizer.decoupled_decay = placeholder(bool)
    # Whether biases and the parameters of norms decay too.
    config.optimizer.decay_norm_and_bias = False
    # Largest global norm of the gradient. 0: off.
    config.optimizer.clip_norm = 0.0
    # Radius of sharpness-aware minimization, which computes each gradient at the worst weights that
    # are this near, in twice the time. 0: off. Foret et al., "Sharpness-Aware Minimization for
    # Efficiently Improving Generalization", 2021.
    config.optimizer.sam_radius = 0.0
    # Equal parts of a batch that are computed one after another, to save memory. The gradient is
    # that of the whole batch, but each part has its own BatchNorm statistics and random draws.
    config.optimizer.accumulation_steps = 1
    # Groups of parameters that are trained differently: a name for each, and the result of
    # `get_group`. A parameter can be in only one group.
    config.optimizer.groups = ConfigDict()

    config.schedule = ConfigDict()
    # "constant", "step", "cosine", "linear" or "one_cycle".
    config.schedule.name = "constant"
    # Length of the linear rise from 0 to the peak (in "one_cycle": of its rising part).
    config.schedule.warmup_epochs = 0.0
    config.schedule.warmup_steps = placeholder(int)
    # The last learning rate divided by the peak, for "cosine", "linear" and "one_cycle".
    config.schedule.final_fraction = 0.0
    # "step": the epochs after which the rate is multiplied by `factor`.
    config.schedule.milestones = ()
    config.schedule.factor = 0.1

    # Decay per step of the exponential moving average of weights and batch statistics; with it, the
    # averages are evaluated. 0: off. In the first steps the decay is at most (1 + step) / (10 +
    # step). Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    config.ema_decay = 0.0

    # Workdir of another run with whose weights this one starts ("": none). The layer "head" gets
    # new weights unless the classes are the same, by name and order.
    config.init_from = ""

    # Evaluation during training, in addition to the one at the end. 0: only at the end.
    config.eval_every_epochs = 1.0
    config.eval_every_steps = placeholder(int)

    # Test-time augmentation, for the evaluation at the end of a run and all later uses of the run;
    # evaluation during training never has it. "plain": none. "mirror": the mean of the logits of
    # the image and of its mirror image. "mirror_shift": the mean of that and of the same for the
    # image shifted by one pixel, both up and left and down and right.
    config.test_time = ConfigDict()
    config.test_time.views = "plain"
    # Shift only images whose largest probability after mirroring is below this. Unset: all images.
    config.test_time.confidence_threshold = placeholder(float)

    config.checkpoint = ConfigDict()
    # In addition to one at the end and one at a signal. 0: only those.
    config.checkpoint.every_epochs = 1.0
    config.checkpoint.every_steps = placeholder(int)

    config.log = ConfigDict()
    # Steps between two lines of metrics.jsonl within an epoch, each with the means of training
    # since the line before. Unset: about a tenth of an epoch. 0: none within an epoch.
    config.log.every_steps = placeholder(int)
    # Curves for TensorBoard in WORKDIR/tensorboard.
    config.log.tensorboard = True
    # Pictures and a page about the finished run in WORKDIR/report.
    config.log.report = True
    # Trace of `profile_steps` steps, starting at `profile_start`, in WORKDIR/profile. 0: none.
    config.log.profile_steps = 0
    config.log.profile_start = 10

    return config.lock()


def get_group(params: str) -> ConfigDict:
    """Returns a group of parameters for `optimizer.groups`.

    Args:
      params: a regular expression for the parameters' whole paths, such as ".*/bias".
    """
    # The fields are those of `optimizer`, which also gives the values of unset ones; but a group
    # that sets `name` takes none of OPTIMIZER_OPTIONS from there. If `num_epochs` is set, the
    # group's schedule ends after that many epochs, and its learning rate is 0 from then on.
    fields = {name: placeholder(kind) for name, kind in GROUP_FIELDS.items()}
    return ConfigDict(fields | {"params": params})
