"""The benchmarks for GPUs: what they read from a compiled program and a trace, and their parts."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import gpu, gpu_ahead, gpu_steps, speedrun

PROGRAM = """
HloModule jit_run, is_scheduled=true

%f (p.1: f32[8,4], p.2: f32[8,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  %p.2 = f32[8,4]{1,0} parameter(1)
  ROOT %add.1 = f32[8,4]{1,0} add(%p.1, %p.2)
}

%called (c.1: bf16[8,4]) -> bf16[8,4] {
  %c.1 = bf16[8,4]{1,0} parameter(0)
  ROOT %negate.1 = bf16[8,4]{1,0} negate(%c.1), metadata={op_name="run/while/neg"}
}

%small (s: (s32[])) -> (s32[]) {
  %s = (s32[]) parameter(0)
  %get.0 = s32[] get-tuple-element(%s), index=0
  ROOT %done.0 = (s32[]) tuple(%get.0)
}

%body (state: (s32[], f32[8,4], bf16[8,4])) -> (s32[], f32[8,4], bf16[8,4]) {
  %state = (s32[], f32[8,4]{1,0}, bf16[8,4]{1,0}) parameter(0)
  %get.1 = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %get.2 = bf16[8,4]{1,0} get-tuple-element(%state), index=2
  %conv.1 = (f32[8,4]{1,0}, u8[16]{0}) custom-call(%get.1, %get.1), custom_call_target="__conv"
  %six.1 = (s32[], s32[], s32[], s32[], s32[], /*index=5*/f32[8,4]{1,0}) fusion(%get.1), calls=%f
  %add_fusion.1 = f32[8,4]{1,0} fusion(%get.1, %get.1), calls=%f, metadata={op_name="run/while/add"}
  %call.1 = bf16[8,4]{1,0} call(%get.2), to_apply=%called
  %inner.1 = (s32[]) while(%small.1), condition=%cond, body=%small
  ROOT %tuple.1 = (s32[], f32[8,4]{1,0}, bf16[8,4]{1,0}) tuple(%get.1, %add_fusion.1, %call.1)
}

ENTRY %main (a: s32[], b: f32[8,4], c: bf16[8,4]) -> (s32[], f32[8,4], bf16[8,4]) {
  %a = s32[] parameter(0)
  %start = (s32[], f32[8,4]{1,0}, bf16[8,4]{1,0}) tuple(%a, %b, %c)
  ROOT %while.1 = (s32[], f32[8,4]{1,0}, /*index=5*/s32[]) while(%start), condition=%c, body=%body
}
"""


def test_a_steps_kernels_are_those_of_the_largest_loop():
    found = gpu_ahead.find_kernels(PROGRAM)
    assert [(one.name, one.operation, one.num_bytes) for one in found] == [
        ("conv.1", "__conv", 128 + 16 + 2 * 128),
        ("add_fusion.1", "fusion", 3 * 128),
        ("six.1", "fusion", 5 * 4 + 2 * 128),
        ("negate.1", "negate", 2 * 64),
    ]
    assert found[1].origin == "run/while/add"
    with pytest.raises(ValueError, match="no loop of steps"):
        gpu_ahead.find_kernels(PROGRAM.replace("while(", "conditional("))


def test_the_networks_kernels_are_those_of_its_loss():
    text = PROGRAM.replace("run/while/add", "run/while/transpose(jvp(ResNet))/add")
    assert gpu_ahead.sum_up(gpu_ahead.find_kernels(text)) == {
        **{"kernels": 4, "num_bytes": 400 + 384 + 276 + 128},
        **{"network_kernels": 1, "network_bytes": 384},
    }


def test_rows_of_other_programs_are_kept(monkeypatch, tmp_path, capsys):
    compiled = SimpleNamespace(
        as_text=lambda: PROGRAM,
        memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=0),
    )
    monkeypatch.setattr(gpu_ahead, "has_plugin", lambda: True)
    monkeypatch.setattr(gpu_ahead, "make_mesh", lambda: None)
    monkeypatch.setattr(gpu_ahead.collectives, "compile_steps", lambda *_: compiled)
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    output = tmp_path / "found.json"
    for arguments in (["speedrun"], ["resnet:18", "--batch-size=512", "--dtype=float32"]):
        assert gpu_ahead.main([*arguments, f"--output={output}"]) == 0
    assert "4 kernels" in capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["speedrun, 2000, bfloat16", "resnet:18, 512, float32"]
    assert all(row["kernels"] == 4 and row["num_bytes"] == 1188 for row in rows.values())
    output.write_text("{")
    with pytest.raises(SystemExit) as caught:
        gpu_ahead.main(["speedrun", f"--output={output}"])
    assert caught.value.code == 2
    assert str(output) in capsys.readouterr().err


def test_bytes_of_a_shape():
    assert (
        gpu_ahead.count_bytes("(bf16[2,3]{1,0}, pred[5]{0}, f8e4m3fn[7], s64[])") == 12 + 5 + 7 + 8
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["speedrun"], "JAX's CUDA plugin is missing: pip install 'jax[cuda13]'"),
        (["fastrun"], "no config 'fastrun' in configs/"),
    ],
)
def test_counting_ahead_refuses_in_one_line(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(gpu_ahead.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        gpu_ahead.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def make_trace(kernels, process="/device:GPU:0", thread="Stream #14(Compute)"):
    events = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": process}},
        {"ph": "M", "pid": 1, "tid": 2, "name": "thread_name", "args": {"name": thread}},
        {"ph": "M", "pid": 9, "name": "process_name", "args": {"name": "/host:CPU"}},
        {"ph": "X", "pid": 9, "tid": 1, "name": "h", "ts": 0, "dur": 9, "args": {"hlo_op": "h"}},
    ]
    for start, length, name, instruction in kernels:
        arguments = {"hlo_op": instruction} if instruction else {}
        event = {"ph": "X", "pid": 1, "tid": 2, "name": name, "args": arguments}
        events.append(event | {"ts": start, "dur": length})
    return {"traceEvents": events}


def test_a_profile_names_the_operation_of_each_kernel():
    kernels = [
        (10.0, 4.0, "volta_conv", "conv.1"),
        (12.0, 4.0, "add_fusion_1", ""),  # named like its instruction; overlaps the one before
        (30.0, 6.0, "volta_conv", "conv.1"),
        (36.0, 4.0, "memset", ""),
    ]
    events = gpu_steps.read_trace(make_trace(kernels))
    row = gpu_steps.summarize(events, PROGRAM, number=2)
    assert [row["span_us_a_step"], row["busy_us_a_step"]] == [15.0, 8.0]
    conv, add, memset = row["kernels"]
    assert (conv["instruction"], conv["us_a_step"], conv["calls_a_step"]) == ("conv.1", 5.0, 1.0)
    assert conv["gb_a_second"] == pytest.approx(400 / 5e3)
    assert add["origin"] == "run/while/add"
    table = gpu_steps.format_profile(row | {"ms_a_step": 1.5}, most=2)
    assert "1.500 ms a step" in table
    assert "run/while/add" in table
    assert memset["kernel"] not in table
    # Without a GPU, what the host says to be an instruction.
    on_host = gpu_steps.read_trace(make_trace(kernels, process="/host:CPU"))
    assert {one.instruction for one in on_host} == {"conv.1", "h"}
    with pytest.raises(ValueError, match="the trace holds no kernels"):
        gpu_steps.summarize([], PROGRAM, number=2)


@pytest.mark.slow
def test_the_parts_work_at_a_small_scale_and_are_not_done_twice(tmp_path, monkeypatch, capsys):
    few = {name: gpu_steps.VARIANTS[name] for name in ("length not known", "XLA's max pooling")}
    monkeypatch.setattr(gpu_steps, "VARIANTS", few)
    path = tmp_path / "found.json"
    command = ["--quick", f"--output={path}", "--config=simple_cnn"]
    command += ["--parts=gradients,profile,variants,throughput"]
    assert gpu.main(command) == 0
    found = json.loads(path.read_text())
    assert set(found["gradients"]["simple_cnn"]) == set(gpu.LIMITS)
    assert any("Conv" in one["origin"] for one in found["profile"]["simple_cnn"]["kernels"])
    times = found["variants"]["simple_cnn"]
    assert set(times) == set(few)
    assert all(len(each) == 2 and min(each) > 0 for each in times.values())
    assert found["throughput"]["simple_cnn"]["images_per_second"][0] > 0
    assert "XLA's max pooling" in capsys.readouterr().out
    assert gpu.main(command) == 0
    # Throughput looks for each net by itself.
    assert capsys.readouterr().out == f"throughput: 0 s\nwrote {path}\n"
    assert json.loads(path.read_text()) == found


@pytest.mark.slow
def test_a_gradient_that_is_far_from_the_cpus_fails_and_is_tried_again(
    tmp_path, monkeypatch, capsys
):
    calls = []

    def run_on(device, function, arguments):
        calls.append(device)
        return np.ones(4) + 5e-4 * (len(calls) % 2)

    monkeypatch.setattr(gpu, "run_on", run_on)
    command = ["--quick", f"--output={tmp_path / 'found.json'}", "--parts=gradients"]
    assert gpu.main(command) == 1
    output = capsys.readouterr()
    assert "BatchNorm: 5.0e-04 from a CPU's, at most 1e-04" in output.out
    far = "max pooling, float32, max pooling, bfloat16, BatchNorm"
    assert output.err == f"error: gradients: too far from a CPU's: {far}\n"
    assert gpu.main(command) == 1


def test_the_distance_of_arrays_that_are_not_numbers_is_not_small():
    assert gpu.distance({"a": np.ones(2)}, {"a": np.ones(2)}) == 0.0
    assert not gpu.distance({"a": np.array([np.nan, 1])}, {"a": np.ones(2)}) <= 1e9


@pytest.mark.slow
def test_variants_are_other_programs_and_xlas_pooling_is_put_back():
    config = speedrun.shrink(gpu.load_config("simple_cnn"))
    racer = gpu.Racer(config, gpu.random_dataset(quick=True))
    steps = gpu_steps.Steps(racer)
    texts = [
        steps.lower(variant).as_text()
        for variant in (
            gpu_steps.Variant(),
            gpu_steps.Variant(pooling=True),
            gpu_steps.Variant(),
            gpu_steps.Variant(static=False),
        )
    ]
    assert texts[0] == texts[2]
    assert len(set(texts)) == 3
    assert "select_and_scatter" in texts[1]
    assert "select_and_scatter" not in texts[0]


@pytest.mark.slow
def test_the_variants_of_the_speedrun_leave_out_the_gradient_that_has_ended():
    steps = gpu_steps.Steps(
        gpu.Racer(speedrun.shrink(gpu.load_config("speedrun")), gpu.random_dataset(quick=True))
    )
    first, last = (
        steps.lower(gpu_steps.Variant(last=last)).as_text().count("convolution(")
        for last in (False, True)
    )
    assert last < first


@pytest.mark.slow
def test_deterministic_runs_have_the_same_bits(tmp_path, capsys):
    path = tmp_path / "found.json"
    assert gpu.main(["--quick", f"--output={path}", "--parts=deterministic"]) == 0
    assert json.loads(path.read_text())["deterministic"]["speedrun"] == {"num_steps": 8}
    assert "the resumed run has the same bits as the first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is no GPU here: --quick tries the parts on a CPU"),
        (["--quick", "--write"], "--quick measures nothing worth keeping: leave out --write"),
        (["--parts=gradient"], "--parts: gradient is not one of gradients, profile, variants"),
        (["--config=fastrun"], "--config: no config 'fastrun' in configs/"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        gpu.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
