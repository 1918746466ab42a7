"""What a program compiled for eight devices exchanges, and the model of its time."""

import json
import subprocess
import sys

import jax
import pytest

from benchmarks import collectives, scaling
from tests import program

TEXT = """
  %all-reduce.1 = f32[16]{0} all-reduce(%x), channel_id=1
  %ar = (f32[3,3,4]{2,1,0}, bf16[8]{0}, pred[]) all-reduce-start(%a, %b, %c), channel_id=2
  %done = (f32[3,3,4]{2,1,0}, bf16[8]{0}, pred[]) all-reduce-done(%ar)
  ROOT %g = u8[2,5]{1,0} all-gather(%y), dimensions={0}
  %not-one = f32[2]{0} add(%all-reduce.1, %z)
"""


def test_reads_exchanges_from_a_program():
    assert collectives.read(TEXT) == [
        ("all-reduce", 64),
        ("all-reduce", 4 * 36 + 2 * 8 + 1),
        ("all-gather", 10),
    ]


# The command as docs/scaling.md gives it, then a small config on the devices that it has set up.
PROGRAM = """
import json
from benchmarks import collectives
from cifar_jax.parallel import devices
from tests import tiny

assert collectives.main(["mlp"]) == 0
config = tiny.bn_config(optimizer__clip_norm=1.0, ema_decay=0.9)
print(json.dumps(collectives.describe(config, devices.make_mesh(64), (32, 32, 1))))
"""


@pytest.mark.slow
def test_eight_devices_join_the_gradients_and_exchange_nothing_else():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=program.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    mlp, normalised = map(json.loads, done.stdout.splitlines())
    assert mlp.pop("config") == "mlp"
    for found, num_norms in ((mlp, 0), (normalised, 3)):
        assert found["devices"] == 8
        assert list(found["exchanges"]) == ["all-reduce"]
        # Each norm once forward and once backward; the gradients with loss and accuracy.
        assert found["exchanges"]["all-reduce"] <= 2 * num_norms + 2
        # The norms' own gradients are their sums backward; the first layer's gradient follows that
        # of the first norm, together with the loss and the accuracy.
        assert found["largest"] >= 0.95 * found["expected"]["gradients"]
        assert found["bytes"] == sum(found["expected"].values()) + 2 * 4


def test_the_model_of_the_time():
    machine = {"devices": 4, "flops": 1e12, "link": 1e9, "hops": 6, "hop_seconds": 1e-6}
    seconds = scaling.step_seconds(10**6, 10**6, machine)
    # 6 MFLOP an image, 128 images, 0.3 TFLOP/s; 1.5 MB at 1 GB/s after six hops
    assert seconds == pytest.approx({"compute": 6e6 * 128 / 0.3e12, "exchange": 1.5e-3 + 6e-6})


def test_the_multiplications_of_a_model():
    first, second = 3 * 3 * 3 * 32 + 32, 3 * 3 * 32 * 32 + 32
    dense = 16 * 16 * 32 * 512 + 512 + 512 * 10 + 10
    assert scaling.forward_macs("simple_cnn") == 32 * 32 * (first + second) + dense


def test_one_device_is_said_to_exchange_nothing(monkeypatch, capsys):
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    monkeypatch.setattr(collectives.devices, "make_mesh", lambda _: mesh)
    monkeypatch.setattr(collectives, "describe", lambda *_: {"exchanges": {}})
    assert collectives.main(["mlp", "--devices=1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"config": "mlp", "exchanges": {}}
    assert err == "one device exchanges nothing with others\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lenett"], "error: no config 'lenett' in configs/: No module"),
        (["--batch-size=7", "mlp"], "a batch of 7 images cannot be shared evenly by 2 devices"),
    ],
)
def test_wrong_arguments_get_one_line(capsys, arguments, words):
    assert collectives.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
