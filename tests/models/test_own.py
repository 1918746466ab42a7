"""Models of the user's own, named in a config: each lack gets one line that says what to do."""

import pytest
from ml_collections import ConfigDict

from cifar_jax.errors import UserError
from cifar_jax.models import own, registry
from cifar_jax.training import check
from tests import tiny

GOOD = """
from __future__ import annotations
from typing import Any
import jax.numpy as jnp
from flax import linen as nn

class Net(nn.Module):
    num_classes: int
    dtype: Any = jnp.float32
    features: int = 4
    scale: float = 2.0
    wide: bool = False

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(self.features, (3, 3), dtype=self.dtype)(images))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="head")(x)
"""
# What replaces what in GOOD, and a part of the message.
WRONG = [
    ((", train=False", ""), "has no method __call__ with the argument `train`"),
    (("def __call__", "def call"), "has no method __call__ with the argument `train`"),
    (("    num_classes: int\n", "    num_classes = 10\n"), "has no field num_classes: add"),
    (("    dtype: Any = jnp.float32\n", "    dtype = jnp.float32\n"), "has no field dtype: add"),
    (("(nn.Module)", ""), "which is not a class of flax.linen.Module"),
    (("class Net", "class Nett"), "has no 'Net'; did you mean 'Nett'?"),
    (("class Net", "class Other"), "has no 'Net': it has Any, Other"),
    (("(x)\n", "(x)[:, :5]\n"), "returns float32 [2, 5] for 2 images with train=False: it must re"),
    (("axis=(1, 2), ", "axis=(2,), "), "returns float32 [2, 32, 10] for 2 images"),
    (("(x)\n", "(x).astype(jnp.bfloat16)\n"), "returns bfloat16 [2, 10] for 2 images"),
    (("return ", ""), "returns <class 'NoneType'> []"),
    (
        ("(x)\n", "(x) + noise\n"),
        "images [2, 32, 32, 1], fails in line 18: NameError: name 'noise'",
    ),
    (("dtype=self.dtype", "dtpe=self.dtype"), "fails in line 16: TypeError: "),
    (
        ("nn.relu(", "nn.Dropout(0.1, deterministic=False, rng_collection='own')("),
        'needs PRNG for "own"',
    ),
    (("nn.relu(", "self.variable('cache', 'n', jnp.zeros, ()) and ("), "has variables in cache"),
    (("scale: float = 2.0", "depth: int"), "non-default argument"),
    (("import jax.numpy", "import jaxx.numpy"), "fails in line 4: ModuleNotFoundError: No module"),
    (("class Net(", "class Net("), ""),
    (("    features: int = 4", "    features: int = 4 +"), "fails in line 10: SyntaxError: "),
    (("import jax.numpy as jnp", "raise SystemExit(3)"), "fails in line 4: SystemExit: 3"),
]


def config(name, **options):
    result = tiny.config()
    with result.unlocked():
        result.model = ConfigDict({"name": name, **options})
    return result


@pytest.mark.parametrize(("change", "words"), WRONG, ids=range(len(WRONG)))
def test_what_a_model_lacks_is_named(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    assert change[0] in GOOD
    (tmp_path / "nets.py").write_text(GOOD.replace(*change).replace("\n    \n", "\n"))
    if not words:
        check.check_config(config("nets.py:Net"))
        return
    with pytest.raises(UserError) as caught:
        check.check_config(config("nets.py:Net"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no.py:Net", "there is no file "),
        ("no_such_module:Net", "'no_such_module', which cannot be imported: ModuleNotFoundError"),
        ("flax.linen:Dens", "has no 'Dens'; did you mean 'Dense'?"),
        ("flax.linen:relu", "which is not a class of flax.linen.Module"),
        ("flax.linen:Dense", "has no field num_classes"),
        ("__main__:Net", "which a later start does not find: use a file"),
        (":Net", "cannot be imported"),
        ("nets.py:", "has no ''"),
        ("nets", "unknown model 'nets', none of mlp, "),
    ],
)
def test_a_name_that_leads_nowhere(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(GOOD)
    with pytest.raises(UserError) as caught:
        check.check_config(config(name))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_have_the_types_of_their_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(GOOD)
    model = registry.create("nets.py:Net", 10, features=3, scale=7, wide=True)
    assert (model.features, model.scale, model.wide) == (3, 7, True)
    for option, value in (("features", 1.5), ("scale", "x"), ("wide", 1), ("features", True)):
        with pytest.raises(UserError, match=f"{option} must be of the type"):
            registry.create("nets.py:Net", 10, **{option: value})
    with pytest.raises(UserError, match="has no option 'depth': it has features, scale, wide"):
        registry.create("nets.py:Net", 10, depth=3)
    (tmp_path / "nets.py").write_text(
        GOOD.replace("dtype: Any = jnp", "depth: int\n    dtype: Any = jnp")
    )
    with pytest.raises(UserError, match=r"needs the option 'depth': set model\.depth"):
        registry.create("nets.py:Net", 10)


def test_an_error_that_may_be_due_to_the_shape_waits_for_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = GOOD.replace(
        "        x = jnp.mean", "        assert x.shape[1] == 8, x.shape\n        x = jnp.mean"
    )
    (tmp_path / "nets.py").write_text(text)
    settings = config("nets.py:Net")
    settings.data.name, settings.data.data_dir = "kmnist", str(tmp_path)  # not prepared yet
    check.check_config(settings)
    model = registry.create("nets.py:Net", 10)
    own.check_outputs(model, (8, 8, 1))
    words = (
        r"model Net, applied to images \[2, 32, 32, 1\], fails in line 17: AssertionError: \(2, 32"
    )
    with pytest.raises(UserError, match=words):
        own.check_outputs(model, (32, 32, 1))
    with pytest.raises(UserError, match=words):
        check.check_config(config("nets.py:Net"))  # the digits' shape is known


def test_parameters_from_data_must_be_those_of_the_model():
    params = {"stem": {"kernel": registry.jnp.zeros((2, 3))}}
    own.check_params_from_data(None, {}, params)
    own.check_params_from_data(None, {"stem": {"kernel": registry.jnp.ones((2, 3))}}, params)
    with pytest.raises(
        UserError, match=r"returns stem/kernel of shape \(3, 2\), but the model has"
    ):
        own.check_params_from_data(None, {"stem": {"kernel": registry.jnp.ones((3, 2))}}, params)
    with pytest.raises(UserError, match=r"returns stem/bias of shape .* has no such parameter"):
        own.check_params_from_data(None, {"stem": {"bias": registry.jnp.ones(3)}}, params)
