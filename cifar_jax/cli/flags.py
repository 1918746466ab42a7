"""The flags of `python main.py`, and the modes that take them. Imports no JAX."""

from absl import flags
from ml_collections import config_flags

from cifar_jax.cli import overrides

FLAGS = flags.FLAGS
# The arguments in which overrides of the config are looked for; `parse.parse` sets them.
ARGV: list[str] = []

# Flags of `--distributed`, for jobs that JAX does not recognise.
JOB = ("coordinator", "num_processes", "process_id")
# The flags that each mode takes.
MODE_FLAGS = {
    "train": ("config", "workdir", "take_over", "distributed", *JOB),
    "evaluate": (
        *("workdir", "workdirs", "ensemble", "checkpoint", "split", "dataset", "data_dir"),
        *("batch_size", "seed", "stored_code", "corruptions"),
    ),
    "calibrate": ("workdir", "checkpoint", "split", "data_dir", "batch_size", "stored_code"),
    "report": (
        *("workdir", "workdirs", "ensemble", "checkpoint", "split", "data_dir", "batch_size"),
        *("seed", "output", "num_mistakes", "stored_code"),
    ),
    "explore": ("config", "dataset", "data_dir", "seed", "output"),
    "predict": (
        *("workdir", "workdirs", "ensemble", "images", "checkpoint", "resize", "batch_size"),
        *("seed", "output", "background", "invert", "explain", "stored_code"),
    ),
    "compare": ("workdirs", "output"),
    "export": (
        *("workdir", "formats", "output", "checkpoint", "data_dir", "batch_size", "seed"),
        *("stored_code", "runtime"),
    ),
    "audit": ("config", "workdir", "folds"),
    "search": ("config", "study", "trials", "space", "objective", "pruner", "storage"),
}
# Modes that take arguments without a flag: a shell expands `--images photos/*` to one value of the
# flag and more arguments.
WITH_REST = ("predict", "compare", "search")

config_flags.DEFINE_config_file(
    "config",
    None,
    "train, explore, search, audit: the config file; text after a colon is passed to its "
    "get_config; --config.FIELD=VALUE overrides a field (all of them: configs/default.py)",
    sys_argv=ARGV,
)
overrides.extend(FLAGS["config"], ARGV)
flags.DEFINE_enum("mode", "train", list(MODE_FLAGS), "what to do")
flags.DEFINE_string(
    "workdir",
    None,
    "the run's folder; training's default is runs/CONFIG, audit's runs/CONFIG_audit; all other "
    "modes also take pretrained:NAME, a model that comes with the package, or a .safetensors file "
    "of export",
)
flags.DEFINE_string(
    "checkpoint",
    "last",
    "evaluate, calibrate, report, predict, export: last, best (on the validation split) or a step",
)
flags.DEFINE_string(
    "split",
    None,
    "evaluate, report (test), calibrate (validation): train, validation, test or the set's own",
)
flags.DEFINE_string(
    "dataset", None, "evaluate: another set with the same classes; explore: any set (cifar10)"
)
flags.DEFINE_string(
    "data_dir",
    None,
    "evaluate, calibrate, report, explore, export: the folder of the data, if not the config's",
)
flags.DEFINE_integer(
    "batch_size",
    None,
    "evaluate, calibrate, report, predict, export: images per step",
    lower_bound=1,
)
flags.DEFINE_multi_string(
    "images", [], "predict: files, folders or patterns, separated by commas or spaces"
)
flags.DEFINE_enum(
    "resize",
    "crop",
    ["crop", "squeeze"],
    "predict: how pictures are brought to the model's proportions",
)
flags.DEFINE_multi_string(
    "workdirs",
    [],
    "compare: the folders of the runs, separated by commas or spaces; evaluate, report, predict: "
    "the runs of an ensemble, separated by commas",
)
flags.DEFINE_bool(
    "corruptions", False, "evaluate: under fifteen corruptions of the images at five strengths"
)
flags.DEFINE_bool(
    "ensemble", False, "evaluate, report, predict: all seeds of the run together, as an ensemble"
)
flags.DEFINE_integer(
    "seed",
    None,
    "explore: chooses the images shown (0); evaluate, report, predict, export: one of several "
    "seeds that were trained together, instead of all (evaluate) or the first (the others)",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
flags.DEFINE_bool("take_over", False, "train: take the workdir from another process that holds it")
flags.DEFINE_bool("distributed", False, "train: together with the job's other processes")
flags.DEFINE_string(
    "coordinator", None, "with --distributed: HOST:PORT of the first process, if JAX cannot find it"
)
flags.DEFINE_integer(
    "num_processes",
    None,
    "with --distributed: the number of processes, if JAX cannot find it",
    lower_bound=1,
)
flags.DEFINE_integer(
    "process_id",
    None,
    "with --distributed: the number of this process, from 0, if JAX cannot find it",
    lower_bound=0,
)
flags.DEFINE_string(
    "background", "white", "predict: the colour behind transparent parts, a name or #RRGGBB"
)
flags.DEFINE_bool("invert", False, "predict: swap dark and light")
flags.DEFINE_bool(
    "explain", False, "predict: draw what in each picture speaks for its class, by Grad-CAM"
)
flags.DEFINE_bool(
    "stored_code",
    False,
    "evaluate, report, predict, export: run the copy of your own model's code that the workdir "
    "holds; it is a program: look at it first",
)
flags.DEFINE_list("formats", [], "export: onnx, stablehlo, safetensors, web, separated by commas")
flags.DEFINE_string(
    "runtime",
    None,
    "export: the npm package onnxruntime-web, which the web page then brings with it; otherwise it "
    "loads it from a public address",
)
flags.DEFINE_string(
    "output", None, "report, explore, predict, compare, export: the folder to write to"
)
flags.DEFINE_integer(
    "num_mistakes", 12, "report: how many of the most confident mistakes to draw", lower_bound=0
)
flags.DEFINE_integer(
    "folds", 5, "audit: the runs, each of which holds out another part", lower_bound=2
)
flags.DEFINE_string("study", None, "search: the study's folder; the default is runs/CONFIG_search")
flags.DEFINE_integer(
    "trials", 30, "search: how many, of all processes and starts together", lower_bound=1
)
flags.DEFINE_multi_string(
    "space",
    [],
    "search: the fields that vary: NAME=log(LOW,HIGH), float(LOW,HIGH), int(LOW,HIGH) or "
    "choice(A,B,...), each in quotes",
)
flags.DEFINE_enum(
    "objective", "accuracy", ["accuracy", "loss"], "search: of the validation split, at the end"
)
flags.DEFINE_enum(
    "pruner",
    "median",
    ["median", "hyperband", "none"],
    "search: how trials are chosen that end early",
)
flags.DEFINE_string(
    "storage",
    None,
    "search: where Optuna keeps the study, instead of an SQLite file in its folder: an address "
    "such as postgresql://..., or the file of a journal",
)
