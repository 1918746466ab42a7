"""Overrides of a config on the command line: what may be unset, a model's options, flag files."""

from unittest import mock

import pytest

from cifar_jax import api
from cifar_jax.cli import main
from cifar_jax.config import durations, fields
from cifar_jax.errors import UserError
from cifar_jax.optim import build
from cifar_jax.training import check
from configs import default
from tests import program, tiny
from tests.few import some

SHIPPED = [
    *("bn_cnn", "digits", "lenet", "mlp", "simple_cnn", "simple_cnn:modern"),
    *("resnet", "resnet:20", "resnet:34", "resnet:56", "resnet:wrn-28-10"),
    *("speedrun", "speedrun:95", "speedrun:96", "vgg_bn", "vgg_bn:augment"),
]
# The variants of these are tried in the slow tests.
EACH_FILE = [name for name in SHIPPED if ":" not in name]


def parse(config, *overrides):
    """Returns the config that a command line gives, or the lines of its refusal."""
    found = []

    def train(*_):
        check.check_config(main.FLAGS.config, default.get_config())
        found.append(main.FLAGS.config)
        return 0

    file, _, variant = config.partition(":")
    flag = f"--config=configs/{file}.py{variant and f':{variant}'}"
    with mock.patch.dict(main.MODES, train=train):
        code, _, err = program.run_here(flag, *(f"--config.{x}" for x in overrides))
    return found[0] if code == 0 else err.splitlines()


def test_every_config_file_is_tried_here():
    files = {path.stem for path in (program.ROOT / "configs").glob("[!_]*.py")}
    assert files - {"default", "folder"} == {name.partition(":")[0] for name in SHIPPED}


@pytest.mark.parametrize("name", some(EACH_FILE, SHIPPED))
def test_every_config_can_be_tried_for_an_epoch_or_some_steps(name):
    for overrides in (["num_epochs=1"], ["num_steps=300", "num_epochs=0"], ["num_steps=1"]):
        config = parse(name, *overrides)
        result = durations.resolve_durations(config, 50_000)
        assert result.warmup < result.total == (config.num_steps or result.steps_per_epoch)
        assert build.create_optimizer(config, result)


@pytest.mark.parametrize("name", some(EACH_FILE, SHIPPED))
def test_every_config_can_be_switched_to_another_optimizer(name):
    refused = parse(name, "optimizer.name=adam", "optimizer.momentum=0.9")
    assert "error: optimizer.momentum is set but adam does not take it: unset it by None" in refused
    unset = ["optimizer.momentum=None", "optimizer.nesterov=None"]
    config = parse(name, "optimizer.name=adam", *unset)
    assert (config.optimizer.name, config.optimizer.momentum) == ("adam", None)


# What None is in a field that is no placeholder.
OFF = {
    "init_from": "",
    "augment.custom": "",
    "augment.flip": False,
    "augment.crop_padding": 0,
    "augment.mixup_alpha": 0.0,
    "checkpoint.every_epochs": 0.0,
    "data.validation_examples": 0,
    "ema_decay": 0.0,
    "eval_every_epochs": 0.0,
    "log.report": False,
    "log.tensorboard": False,
    "loss.label_smoothing": 0.0,
    "optimizer.clip_norm": 0.0,
    "optimizer.learning_rate_scaling": "none",
    "optimizer.sam_radius": 0.0,
    "optimizer.weight_decay": 0.0,
    "schedule.milestones": (),
    "schedule.name": "constant",
    "schedule.warmup_epochs": 0.0,
    "test_time.views": "plain",
}
ALWAYS_ON = {
    *("num_epochs", "batch_size", "eval_batch_size", "dtype", "seed", "num_seeds", "model.name"),
    *("data.name", "data.test_fraction", "data.max_broken", "data.train_split", "data.placement"),
    *("augment.rand_augment_magnitude", "optimizer.name", "optimizer.learning_rate"),
    *("optimizer.base_batch_size", "optimizer.accumulation_steps", "schedule.factor"),
    *("log.profile_start",),
}


@pytest.mark.parametrize("name", ["vgg_bn", "speedrun"])
def test_none_is_off_wherever_something_can_be_off(name):
    config = parse(name, *(f"{field}=None" for field in OFF))
    values = dict(fields.flatten(config))
    assert {field: values[field] for field in OFF} == OFF
    # In Python and in a config file too.
    given = tiny.config(**{field.replace(".", "__"): None for field in OFF})
    check.check_config(given, default.get_config())
    assert {field: dict(fields.flatten(given))[field] for field in OFF} == OFF


def test_every_field_takes_none_or_says_that_it_cannot_be_off():
    known = default.get_config()
    for field, usual in fields.flatten(known):
        config = default.get_config()
        config.update_from_flattened_dict({field: None})
        fields.turn_off(config, known)
        if field not in ALWAYS_ON:
            fields.check_fields(config, known)
            assert dict(fields.flatten(config))[field] in (None, 0, "", (), *OFF.values())
            continue
        with pytest.raises(UserError) as caught:
            fields.check_fields(config, known)
        (line,) = str(caught.value).splitlines()
        assert repr(usual) in line or field in ("num_epochs", "model.name")


def test_the_number_of_steps_counts_alone(tmp_path):
    for epochs in ("None", "0", "-3"):
        config = parse("vgg_bn", "num_steps=300", f"num_epochs={epochs}")
        assert durations.resolve_durations(config, 50_000).total == 300
    assert parse("vgg_bn", "num_epochs=None") == [
        "error: num_epochs and num_steps are both None: set the one that counts"
    ]
    assert parse("vgg_bn", "num_epochs=nan") == ["error: num_epochs is nan, not a finite number"]
    assert parse("vgg_bn", "num_steps=300", "num_epochs=nan") == [
        "error: num_epochs is nan, not a finite number: leave it out, since the one in steps counts"
    ]
    assert parse("vgg_bn", "num_steps=nan") == [
        "error: flag --config.num_steps=nan: the value must be a whole number, or None to unset it"
    ]
    # A finished run stays as it is, whatever the epochs that do not count.
    flag = program.write_config(tmp_path / "short.py", num_steps=2, schedule__name="cosine")
    for epochs in ("2", "7", "None"):
        arguments = (flag, f"--workdir={tmp_path / 'run'}", f"--config.num_epochs={epochs}")
        code, out, err = program.run_here(*arguments)
        assert (code, err) == (0, "")
        assert ("is finished: step 2" in out) == (epochs != "2")


def test_everything_that_may_be_unset_takes_none():
    known = dict(fields.flatten(default.get_config()))
    names = [name for name, value in known.items() if value is None]
    assert "num_steps" in names
    assert "data.data_dir" in names
    config = parse("vgg_bn", *(f"{name}=None" for name in names))
    assert [name for name, value in fields.flatten(config) if value is None] == names
    group = parse("speedrun", "optimizer.groups.head.weight_decay=None")
    assert group.optimizer.groups.head.weight_decay is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.dropout_rate=0.25"], {"name": "vgg_bn", "dropout_rate": 0.25}),
        (["model.name=resnet", "model.depth=32"], {"name": "resnet", "depth": 32}),
        (["model.depth=32", "model.name=resnet"], {"name": "resnet", "depth": 32}),
        (["model.name=lenet"], {"name": "lenet"}),
        (
            ["model.name=bn_cnn", "model.conv_features=(8, 16)", "model.dense_features=(4,)"],
            {"name": "bn_cnn", "conv_features": (8, 16), "dense_features": (4,)},
        ),
        (
            ["model.name=mlp", "model.activation=relu"],
            {"name": "mlp", "activation": "relu"},
        ),
    ],
)
def test_the_options_of_the_models_class_are_known(overrides, expected):
    config = parse("vgg_bn", *overrides)
    assert config.model.to_dict() == {
        **({"dense_dropout_rate": 0.5} if expected["name"] == "vgg_bn" else {}),
        **expected,
    }


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.depth=3"], "model vgg_bn has no option 'depth': it has dropout_rate, dense"),
        (["model.name=lenet", "model.depth=3"], "model lenet has no option 'depth': it has none"),
        (["model.name=lent", "model.depth=3"], "unknown model 'lent', none of mlp, simple"),
        (["model.name=lent"], "unknown model 'lent', none of mlp, simple_cnn"),
        (["model.name=resnet", "model.depth=x"], "flag --config.model.depth=x: "),
        (["model.name=resnet", "model.depth=None"], "model resnet: depth must be a positive"),
        (["model.dropout_rate=2"], "model vgg_bn: dropout_rate must be a number in [0, 1)"),
    ],
)
def test_options_that_do_not_fit_the_model(overrides, line):
    (found,) = parse("vgg_bn", *overrides)
    assert found.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("config", "override", "words"),
    [
        (
            "mlp",
            ".=20",
            "--config. ends in a dot: add the name of a field; it has augment, batch_s",
        ),
        ("mlp", ".model.=20", "--config.model. ends in a dot: add the name of a field; it has "),
        ("mlp", ".seed.=20", "--config.seed.: there is no such field; did you mean --config.seed?"),
        ("mlp", ".model=resnet", "did you mean --config.model.name=resnet?"),
        ("mlp", ".data=mnist", "did you mean --config.data.name=mnist?"),
        ("mlp", ".optimizer={}", "which are set one by one: it has accumulation_steps, b1"),
        (
            "mlp",
            ".log=True",
            "--config.log is a group of fields, which are set one by one: it has e",
        ),
        ("speedrun", ".optimizer.groups=None", "--config.optimizer.groups={} removes all of them"),
        ("mlp", ".model.hidden_sizes[0]=7", '--config.model.hidden_sizes="(500, 50)"'),
        ("mlp", ".schedule.milestones[0]=7", '--config.schedule.milestones="()"'),
        ("mlp", '.model["name"]=mlp', "there is no such field; did you mean --config.model.name?"),
        ("mlp", ".a-b=3", "--config.a-b: there is no such field; see configs/default.py"),
        ("mlp", ".class=3", "--config.class: there is no such field; see configs/default.py"),
        ("mlp", ".optimizer.groups.x.params=a", "groups are made in a config file, by get_group"),
        ("mlp", ".model.name.x=3", "no such field; did you mean --config.model.name?"),
        ("mlp", ".model.name=MLPP", "did you mean 'mlp'?"),
        ("mlp", ".model.name=zzz", "a class of your own is named as FILE.py:CLASS"),
        ("mlp", ".model.activation=None", "activation must be a string, not None"),
        ("vgg_bn", ".model.dropout_rate=None", "in [0, 1), not None; 0 turns it off"),
        ("mlp", ".data.name=MNIST", "did you mean mnist? Give NAME"),
        ("mlp", ".data.name=CIFAR10", "did you mean cifar10? Give NAME"),
        ("mlp", ".augment.flip=maybe", "the value must be True or False, or None to unset it"),
        ("mlp", ".batch_size=1e3", "the value must be a whole number, or None to unset it"),
        ("mlp", ".ema_decay=x", "the value must be a number, or None to unset it"),
        ("digits:foo", "", "digits.py takes nothing after its name: leave out ':foo'"),
        ("digits:", "", "digits.py takes nothing after its name: leave out ':'"),
    ],
)
def test_an_override_that_cannot_be_gets_one_line_with_a_suggestion(config, override, words):
    arguments = [f"--config{override}"] if override else []
    code, _, err = program.run_here(f"--config={config}", *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("error: ")
    assert words in err
    assert "Error" not in err


def test_a_config_says_what_may_follow_its_name(tmp_path):
    file = tmp_path / "sizes.py"
    file.write_text("def get_config(size):\n    return None\n")
    code, _, err = program.run_here(f"--config={file}")
    assert (code, err) == (2, f"error: {file} needs 'size' after its name: {file}:...\n")
    with pytest.raises(UserError, match="takes nothing after its name: leave out ':foo'"):
        api.get_config("digits:foo")


@pytest.mark.parametrize(
    ("text", "given", "line"),
    [
        (
            "--config=digits\n# few\n--config.sede=3",
            (),
            "--config.sede: there is no such field; did",
        ),
        ("--config=digits\n--config.seed=x", (), "flag --config.seed=x: the value must be a"),
        ("--config=digits\n--config.model.depth=3", (), "model lenet has no option 'depth'"),
        ("--config=digits", ("--config.seed=-1",), "seed is -1 but must not be negative"),
        ("--config=digits\n--confg=x", (), "Unknown command line flag 'confg'"),
        ("--mode=compare", ("--config.seed=1",), "--config.seed must come after a --config=FILE"),
        (b"\xff\xfe", (), "--flagfile: UnicodeDecodeError"),
    ],
)
def test_a_mistake_in_a_flag_file_or_beside_it_gets_one_line(tmp_path, text, given, line):
    file = tmp_path / "flags"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, _, err = program.run_here(f"--flagfile={file}", *given)
    assert code == 2
    assert err.startswith(f"error: {line}")
    assert len(err.splitlines()) == 1


def test_a_flag_file_gives_overrides_and_others_may_follow(tmp_path):
    (tmp_path / "flags").write_text("--config=digits\n--config.model.name=mlp\n--config.seed=3\n")
    found = []

    def train():
        found.append(main.FLAGS.config)
        return 0

    with mock.patch.dict(main.MODES, train=train):
        file = f"--flagfile={tmp_path / 'flags'}"
        assert program.run_here(file, "--config.model.hidden_sizes=(8,)", "--config.seed=4")[0] == 0
    assert (found[0].seed, found[0].model.to_dict()) == (4, {"name": "mlp", "hidden_sizes": (8,)})


def test_a_flag_file_that_is_not_there_is_named_before_anything_is_imported(tmp_path):
    code, _, err = program.run_apart(f"--flagfile={tmp_path / 'none'}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("error: --flagfile: Unable to open flagfile: [Errno 2] No such file")
