"""Wrong commands and configs: each mistake gets one line, and nothing is written."""

import pytest

from cifar_jax.data import datasets
from tests import program
from tests.program import assert_refused

DIGITS = "--config=configs/digits.py"
# (arguments, a part of each error line)
WRONG = [
    ((), ("--config is missing",)),
    (("--config=zzz",), ("no file 'zzz'; there are configs/bn_cnn.py, ",)),
    (("--config=configs/digit.py",), ("did you mean configs/digits.py?",)),
    (("--config=digit",), ("did you mean digits?",)),
    (("--config", "digits", "--config.seed=-1"), ("seed is -1",)),
    (("--config=resnet:21",), ("no variant '21'; there are 18, 20",)),
    (("--config=",), ("no file ''",)),
    (("--config",), ("no file ''",)),
    (("--config=configs",), ("no file 'configs'",)),
    (("--config=configs/resnet.py:21",), ("no variant '21'; there are 18, 20",)),
    (("--config=configs/simple_cnn.py:moderm",), ("no variant 'moderm'",)),
    (("--config=configs/digits.py:20",), ("digits.py takes nothing after its name",)),
    (("--config.seed=1",), ("--config.seed must come after a --config=FILE",)),
    (("--config.seed=1", DIGITS), ("--config.seed must come after a --config=FILE",)),
    (("--mode=report", "--workdir=x", "--config.seed=1"), ("a finished run has its own",)),
    ((DIGITS, "--config.sed=1"), ("--config.sed: there is no such field; did you mean",)),
    ((DIGITS, "--config.learning_rate=1"), ("did you mean --config.optimizer.learning_rate?",)),
    ((DIGITS, "--config.optimizer.lr=1"), ("--config.optimizer.lr: there is no such field",)),
    (
        (DIGITS, "--config.optimizer.learning_rate=1", "--config.optimiser.learning_rate=1"),
        ("optimiser.learning_rate: there is no such field; did you mean --config.optimizer.",),
    ),
    ((DIGITS, "--config.nonsense.x=1"), ("--config.nonsense.x: there is no such field",)),
    ((DIGITS, "--config.model.dropout_rat=0.1"), ("model lenet has no option 'dropout_rat'",)),
    ((DIGITS, "--config.batch_size=many"), ("--config.batch_size=many",)),
    ((DIGITS, "--config.batch_size=12.5"), ("--config.batch_size=12.5",)),
    ((DIGITS, "--config.batch_size=0"), ("batch_size is 0 but must be greater than 0",)),
    ((DIGITS, "--config.batch_size=-64"), ("batch_size is -64 but",)),
    ((DIGITS, "--config.num_epochs=0"), ("num_epochs is 0.0 but must be greater than 0",)),
    ((DIGITS, "--config.num_epochs=nan"), ("num_epochs is nan, not a finite number",)),
    ((DIGITS, "--config.num_epochs=inf"), ("num_epochs is inf, not a finite number",)),
    ((DIGITS, "--config.num_steps=-1"), ("num_steps is -1 but",)),
    ((DIGITS, "--config.num_steps=" + "9" * 400), ("num_steps is not within 2**31",)),
    ((DIGITS, "--config.optimizer.learning_rate=nan"), ("learning_rate is nan",)),
    ((DIGITS, "--config.optimizer.learning_rate=-1"), ("learning_rate is -1.0 but",)),
    ((DIGITS, "--config.optimizer.learning_rate=1e39"), ("more than a float32 can hold",)),
    ((DIGITS, "--config.loss.label_smoothing=1"), ("label_smoothing is 1.0 but must be at",)),
    ((DIGITS, "--config.optimizer.name=adm"), ("did you mean 'adam'?",)),
    ((DIGITS, "--config.optimizer.name=lbfgs"), ("'lbfgs', which cannot train like this",)),
    ((DIGITS, "--config.optimizer.momentum=0.9"), ("momentum is set but adam does not take it",)),
    ((DIGITS, "--config.seed=-1"), ("seed is -1 but must not be negative",)),
    ((DIGITS, "--config.seed=4294967296"), ("seed is 4294967296 but must be less than 2**32",)),
    ((DIGITS, "--config.model.name=lenett"), ("unknown model 'lenett', none of mlp",)),
    ((DIGITS, "--config.data.name=cifar11"), ("unknown dataset 'cifar11': did you mean cifar10",)),
    ((DIGITS, "--config.schedule.name=cosin"), ("schedule.name is 'cosin', none of constant",)),
    (
        (DIGITS, "--config.schedule.milestones=(3,2)"),
        ("schedule.milestones is (3, 2) but must be ascending",),
    ),
    ((DIGITS, "--config.dtype=float16"), ("dtype is 'float16', none of float32, bfloat16",)),
    ((DIGITS, "--config.data.placement=gpu"), ("data.placement is 'gpu', none of auto",)),
    ((DIGITS, "--config.num_cpu_devices=7"), ("batch_size 64 is not a multiple of num_cpu_dev",)),
    ((DIGITS, "--config.optimizer.accumulation_steps=3"), ("not a multiple of optimizer.accum",)),
    (
        (DIGITS, "--config.batch_size=0", "--config.ema_decay=1", "--config.dtype=int8"),
        ("batch_size is 0", "ema_decay is 1.0", "dtype is 'int8'"),
    ),
    ((DIGITS, "--config.augment.crop_padding=-1"), ("crop_padding is -1",)),
    ((DIGITS, "--mode=trian"), ("trian",)),
    ((DIGITS, "--batch_size=64"), ("does not take --batch_size, which belongs to --mode=eval",)),
    ((DIGITS, "--optimizer=adam"), ("optimizer",)),
    ((DIGITS, "extra"), ("unexpected argument 'extra'",)),
    (("--mode=evaluate",), ("--workdir is missing",)),
    (("--mode=evaluate", DIGITS, "--workdir=x"), ("does not take --config",)),
    (("--mode=evaluate", "--workdir=no/such/run"), ("no/such/run/config.json does not exist",)),
    (("--mode=evaluate", "--workdir=x", "--batch_size=0"), ("batch_size",)),
    (("--mode=evaluate", "--workdir=x", "--images=a.png"), ("does not take --images, which",)),
    (("--mode=evaluate", "--workdir=x", "extra"), ("unexpected argument 'extra'",)),
    (("--mode=predict", "--images=a.png"), ("--workdir is missing",)),
    (("--mode=predict", "--workdir=x", "--images=a.png"), ("x/config.json does not exist",)),
    (("--mode=predict", "--workdir=x", "--dataset=mnist"), ("does not take --dataset",)),
    (("--mode=predict", "--workdir=x", "--resize=stretch"), ("resize",)),
    (("--mode=predict", "--workdir=x", "--output="), ("--output is empty",)),
    (("--mode=explore", "--dataset=cifar11"), ("unknown dataset 'cifar11'",)),
    (("--mode=explore", "--workdir=x"), ("does not take --workdir, which",)),
    (("--mode=explore", DIGITS, "--dataset=mnist"), ("--dataset cannot be combined",)),
    (("--mode=explore", DIGITS, "--config.seed=-1"), ("seed is -1",)),
    (("--mode=explore", "--dataset=digits", "--seed=-1"), ("seed",)),
    (("--mode=compare",), ("--workdirs is missing",)),
    (("--mode=compare", "--workdirs="), ("--workdirs is missing",)),
    (("--mode=compare", "--workdirs=a,b"), ("a/config.json does", "b/config.json does")),
    (("--mode=compare", "--workdirs=runs/*"), ("runs/* matches no folder",)),
    (
        ("--mode=export", "--formats=safetensors"),
        ("--workdir is missing: the folder of the run to",),
    ),
    (("--mode=export", "--workdir=x"), ("--formats is missing: one or more of onnx, stablehlo, ",)),
    (("--mode=export", "--workdir=x", "--formats=pt"), ("--formats: 'pt' is none of onnx, ",)),
    (("--mode=export", "--workdir=x", "--formats=safetensors"), ("x/config.json does not exist",)),
    (("--mode=evaluate", "--workdir=pretrained:x"), ("pretrained:x: no such model comes with",)),
    (("--mode=evaluate", "--workdir=x.safetensors"), ("x.safetensors does not exist",)),
    (
        (DIGITS, "--workdir=pretrained:mlp"),
        ("start from it with --config.init_from=pretrained:mlp",),
    ),
    ((DIGITS, "--config.init_from=pretrained:x"), ("pretrained:x: no such model comes with",)),
    (("--mode=compare", "--workdirs=pretrained:mlp"), ("pretrained:mlp/config.json does not",)),
    (("--mode=explore", "--dataset=folder"), ("or --data_dir=PATH where the set is named by",)),
    (("--mode=explore", "--dataset=MNIST"), ("did you mean mnist? Give NAME",)),
    (("--mode=report",), ("--workdir is missing: the folder of the run to report",)),
    (("--mode=report", DIGITS, "--workdir=x"), ("--mode=report does not take --config",)),
    (("--mode=report", "--workdir=x", "--dataset=mnist"), ("does not take --dataset",)),
    (("--mode=report", "--workdir=no/such/run"), ("no/such/run/config.json does not exist",)),
    (("--mode=report", "--workdir=\udcff"), (r"--workdir \udcff: checkpoints cannot be in",)),
    ((DIGITS, "--workdir=\udcff/x"), (r"--workdir \udcff/x: checkpoints cannot be in",)),
    (("--mode=evaluate", "--workdir=~nobody_of_that_name/x"), ("~nobody_of_that_name",)),
]
# Mistakes that show by what is known of the data without reading them.
MISFITS = [
    ("batch_size=2000", "batch_size 2000 is larger than the 320 training images"),
    ("data.validation_examples=1437", "cannot hold out 1437 validation images"),
    ("num_epochs=1e30", "steps is too long"),
    ("augment.crop_padding=32", "crop_padding=32 must be below the image's side"),
]
# Broken config files of a user.
FILES = [
    ("def get_config(:", "invalid syntax"),
    ("raise RuntimeError('no luck')", "no luck"),
    ("def get_config(): raise KeyError('a')", "--config=mine.py: KeyError 'a'"),
    ("import sys; sys.exit(0)", "--config=mine.py: SystemExit 0"),
    ("def get_config(): exit()", "--config=mine.py: SystemExit"),
    ("import no_such_module", "no_such_module"),
    ("x = 1", "get_config"),
    ("def get_config(): return None", "the config is of the type NoneType"),
    ("def get_config(): return {'seed': 1}", "the config is of the type dict"),
    ("{config}.sed = 1\n    return config", "sed"),
    ("{config}.seed = 'one'\n    return config", "seed"),
    (
        "{unlocked}\n        config.sed = 1\n    return config",
        "sed: there is no such field; did you",
    ),
    ("{unlocked}\n        del config.optimizer.b1\n    return config", "optimizer.b1 is missing"),
    ("{unlocked}\n        config.model = 3\n    return config", "field 'model'"),
    ("{unlocked}\n        del config.model.name\n    return config", "model.name is missing"),
    ("{unlocked}\n        config.batch_size = None\n    return config", "batch_size is None but"),
]
_DEFAULT = "from configs import default\ndef get_config():\n    config = default.get_config()\n    "


@pytest.mark.parametrize(("arguments", "parts"), WRONG, ids=lambda x: " ".join(x)[:60])
def test_each_mistake_in_a_command_gets_one_line(here, arguments, parts):
    assert_refused(program.run_here(*arguments), *parts)
    assert [path.name for path in here.iterdir()] == ["configs"]


@pytest.mark.parametrize(("override", "part"), MISFITS)
def test_a_config_that_does_not_fit_the_data_gets_one_line_before_they_are_read(
    here, monkeypatch, override, part
):
    monkeypatch.setattr(datasets, "load_run_data", lambda *_: pytest.fail("loaded the data"))
    flags = (program.write_config(here / "short.py"), "--workdir=x")
    code, _, err = program.run_here(*flags, f"--config.{override}")
    assert (code, err.startswith("error: "), err.count("\n")) == (2, True, 1)
    assert part in err
    assert not (here / "x").exists()


def test_the_run_to_start_from_is_checked_before_the_data_is_loaded(here, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("loaded the data"))
    flags = (program.write_config(here / "short.py"), "--workdir=x", "--config.init_from=other")
    assert_refused(program.run_here(*flags), "other/config.json does not exist")
    (here / "other" / "checkpoints").mkdir(parents=True)
    (here / "other" / "config.json").write_text("{}")
    assert_refused(program.run_here(*flags), "other has no checkpoint yet")


@pytest.mark.parametrize(("text", "part"), FILES, ids=range(len(FILES)))
def test_a_broken_config_file_gets_one_line(here, text, part):
    unlocked = f"{_DEFAULT}with config.unlocked():"
    text = text.replace("{config}", f"{_DEFAULT}config").replace("{unlocked}", unlocked)
    (here / "mine.py").write_text(text)
    code, out, err = program.run_here("--config=mine.py", "--workdir=x")
    assert (code, out) == (2, "")
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert part in err
    assert not (here / "x").exists()


def test_wrong_command_in_a_process_of_its_own_has_no_traceback(here):
    # A backend that does not exist, so that starting JAX's devices would fail with another error.
    wrong = ("--config.batch_size=0", "--config.dtype=int8")
    code, out, err = program.run_apart(DIGITS, *wrong, environment={"JAX_PLATFORMS": "none"})
    assert (code, out) == (2, "")
    assert [line.split(" ")[:2] for line in err.splitlines()] == [
        ["error:", "batch_size"],
        ["error:", "dtype"],
    ]
    assert not (here / "runs").exists()
