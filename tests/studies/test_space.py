"""The space of a search: what is accepted, and the one line for what is not."""

import pytest
from ml_collections import ConfigDict

from cifar_jax.errors import UserError
from cifar_jax.studies import space
from tests import program, tiny

RATE = "optimizer.learning_rate=log(1e-4,1e-1)"


def test_a_space_is_read():
    texts = [RATE, "augment.cutout=int(0,16)", "optimizer.name=choice(sgd, 'adamw')"]
    texts += ["loss.label_smoothing=float(0,0.2)", "augment.flip=choice(True,false)"]
    texts += ["ema_decay=choice(0,0.9)", "batch_size=choice(32,64)"]
    texts += ["loss.class_weights=choice(balanced,None)"]
    assert space.parse_space(texts, tiny.config()) == [
        ("optimizer.learning_rate", "log", (1e-4, 1e-1)),
        ("augment.cutout", "int", (0, 16)),
        ("optimizer.name", "choice", ("sgd", "adamw")),
        ("loss.label_smoothing", "float", (0.0, 0.2)),
        ("augment.flip", "choice", (True, False)),
        ("ema_decay", "choice", (0.0, 0.9)),
        ("batch_size", "choice", (32, 64)),
        ("loss.class_weights", "choice", ("balanced", None)),
    ]
    (momentum,) = space.parse_space(
        ["optimizer.momentum=choice(None,0.9)"], tiny.config(optimizer__name="sgd")
    )
    assert momentum.values == (None, 0.9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer.learning_rate", "give NAME=log(LOW,HIGH)"),
        ("optimizer.learning_rate=1e-3", "give NAME=log(LOW,HIGH)"),
        ("learning_rate=log(1e-4,1e-1)", "no field 'learning_rate'; did you mean optimizer.learn"),
        ("augment.cutouts=int(0,16)", "no field 'augment.cutouts'; did you mean augment.cutout?"),
        ("model.depth=int(2,4)", "model mlp has no option 'depth': it has hidden_sizes, activ"),
        ("init_from=choice(nowhere,elsewhere)", "nowhere/config.json does not exist: is nowhere t"),
        ("seed=int(0,9)", "a search cannot vary this field"),
        ("data.validation_examples=int(1,9)", "a search cannot vary this field"),
        ("log.report=choice(True,False)", "a search cannot vary this field"),
        ("optimizer.learning_rate=logs(1e-4,1e-1)", "'logs', none of log, float, int, choice; did"),
        ("optimizer.learning_rate=log(0,1e-1)", "0.0 has no logarithm"),
        ("optimizer.learning_rate=log(1e-1,1e-4)", "0.1 is not less than 0.0001"),
        ("optimizer.learning_rate=log(1e-1)", "give log(LOW,HIGH)"),
        ("optimizer.learning_rate=log(a,b)", "'a' is not of the type float"),
        ("optimizer.learning_rate=log(1e-4,inf)", "'inf' is not of the type float, or not finite"),
        ("optimizer.learning_rate=float(,1)", "a value is missing"),
        ("augment.cutout=log(1,16)", "the field is of the type int: use int or choice"),
        ("augment.cutout=int(0,1.5)", "'1.5' is not of the type int"),
        ("optimizer.name=float(0,1)", "the field is of the type str: use choice"),
        ("optimizer.name=choice(sgd)", "give at least two values, each once"),
        ("optimizer.name=choice(sgd,sgd,adam)", "give at least two values, each once"),
        ("augment.flip=choice(yes,no)", "'yes' is not of the type bool"),
        ("model.hidden_sizes=choice(16,32)", "a search cannot vary a field of the type tuple"),
        ("--trials=3", "flags come before --space"),
    ],
)
def test_a_wrong_text_is_named(text, words):
    with pytest.raises(UserError) as refusal:
        space.parse_space([RATE.replace("learning", "other"), text], tiny.config())
    first, line = str(refusal.value).splitlines()
    assert first.startswith("--space optimizer.other_rate=log(1e-4,1e-1): there is no field")
    assert line.startswith(f"--space {text}: ")
    assert words in line


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["loss.label_smoothing=float(0,1)"], "loss.label_smoothing is 1.0 but must be at least 0"),
        (["augment.cutout=int(-1,4)"], "augment.cutout is -1 but must not be negative"),
        (
            ["optimizer.name=choice(sgd,adm)"],
            "(optimizer.name=adm): optimizer.name is 'adm'",
        ),
        ([RATE, "batch_size=choice(64,63)", "optimizer.accumulation_steps=choice(1,2)"], "63 is"),
        (["model.activation=choice(relu,gelu)"], "mlp has no activation 'gelu'"),
        (["loss.class_weights=choice(even,none)"], "class_weights is 'even' but must be 'balance"),
        ([], "--space is missing: give NAME=log(LOW,HIGH)"),
        ([RATE, RATE], "--space has optimizer.learning_rate twice"),
    ],
)
def test_a_space_that_holds_a_wrong_config_is_refused(texts, words):
    with pytest.raises(UserError) as refusal:
        space.parse_space(texts, tiny.config())
    assert words in str(refusal.value)


def test_an_option_of_the_model_that_the_config_leaves_out_is_to_be_set():
    config = tiny.config()
    with config.unlocked():
        config.model = ConfigDict({"name": "bn_cnn"})
    words = "the config does not set this option: set it too, --config.model.dropout_rate=..."
    with pytest.raises(UserError, match=words):
        space.parse_space(["model.dropout_rate=float(0,0.5)"], config)
    with pytest.raises(UserError, match="model bn_cnn has no option 'depth': it has conv_features"):
        space.parse_space(["model.depth=int(2,4)"], config)


def test_the_order_of_a_space_does_not_matter():
    one = [RATE, "optimizer.name=choice(sgd,adamw)", "augment.flip=choice(true,false)"]
    other = [one[2], "optimizer.name=choice(adamw,sgd)", RATE]
    written = [
        [space.write_parameter(x) for x in space.parse_space(texts, tiny.config())]
        for texts in (one, other, [*one, "batch_size=int(32,64)"], [one[0], *other[:1]])
    ]
    assert [space.is_same(written[0], others) for others in written] == [True, True, False, False]
    assert not space.is_same(["batch_size=int(32, 64)"], ["batch_size=int(64, 32)"])
    read = [space.read_parameter(text) for text in written[0]]
    assert read == space.parse_space(one, tiny.config())


def test_the_command_names_a_wrong_space_before_anything_runs(tmp_path):
    flag = program.write_config(tmp_path / "short.py")
    flags = (flag, "--mode=search", f"--study={tmp_path / 'study'}", "--space", "a=log(1,2)")
    code, out, err = program.run_here(*flags, "augment.cutout=int(5,1)")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: --space a=log(1,2): there is no field 'a'; see configs/default.py",
        "error: --space augment.cutout=int(5,1): 5 is not less than 1",
    ]
    assert not (tmp_path / "study").exists()
