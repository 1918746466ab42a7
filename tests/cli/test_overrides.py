"""Overrides of a config on the command line: what may be unset, a model's options, flag files."""

from unittest import mock

import pytest

from cifar_jax.cli import main
from cifar_jax.config import durations, fields
from cifar_jax.optim import build
from cifar_jax.training import check
from configs import default
from tests import program

SHIPPED = [
    *("bn_cnn", "digits", "lenet", "mlp", "simple_cnn", "simple_cnn:modern"),
    *("resnet", "resnet:20", "resnet:34", "resnet:56", "resnet:wrn-28-10"),
    *("speedrun", "speedrun:95", "speedrun:96", "vgg_bn", "vgg_bn:augment"),
]


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


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_can_be_tried_for_an_epoch_or_some_steps(name):
    for overrides in (["num_epochs=1"], ["num_steps=300", "num_epochs=0"], ["num_steps=1"]):
        config = parse(name, *overrides)
        result = durations.resolve_durations(config, 50_000)
        assert result.warmup < result.total == (config.num_steps or result.steps_per_epoch)
        assert build.create_optimizer(config, result)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_can_be_switched_to_another_optimizer(name):
    refused = parse(name, "optimizer.name=adam", "optimizer.momentum=0.9")
    assert "error: optimizer.momentum is set but adam does not take it: unset it by None" in refused
    unset = ["optimizer.momentum=None", "optimizer.nesterov=None"]
    config = parse(name, "optimizer.name=adam", *unset)
    assert (config.optimizer.name, config.optimizer.momentum) == ("adam", None)


def test_everything_that_may_be_unset_takes_none_and_the_rest_does_not():
    known = dict(fields.flatten(default.get_config()))
    names = [name for name, value in known.items() if value is None]
    assert "num_steps" in names
    assert "data.data_dir" in names
    config = parse("vgg_bn", *(f"{name}=None" for name in names))
    assert [name for name, value in fields.flatten(config) if value is None] == names
    group = parse("speedrun", "optimizer.groups.head.weight_decay=None")
    assert group.optimizer.groups.head.weight_decay is None
    assert parse("vgg_bn", "num_epochs=None") == [
        "error: num_epochs is None but must be of the type float"
    ]
    assert parse("vgg_bn", "data.name=None") == [
        "error: data.name is None but must be of the type str"
    ]


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
        (["model.name=lent", "model.depth=3"], "unknown model 'lent': choose one of mlp, simple"),
        (["model.name=lent"], "unknown model 'lent': choose one of mlp, simple"),
        (["model.name=resnet", "model.depth=x"], "flag --config.model.depth=x: "),
        (["model.name=resnet", "model.depth=None"], "model resnet: depth must be a positive"),
        (["model.dropout_rate=2"], "model vgg_bn: dropout_rate must be a number in [0, 1)"),
    ],
)
def test_options_that_do_not_fit_the_model(overrides, line):
    (found,) = parse("vgg_bn", *overrides)
    assert found.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("text", "given", "line"),
    [
        (
            "--config=digits\n# few\n--config.sede=3",
            (),
            "--config.sede: there is no such field; did",
        ),
        ("--config=digits\n--config.seed=x", (), "flag --config.seed=x: invalid literal"),
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
