"""The modes in which several runs answer one question. Imports no JAX."""

from cifar_jax.cli.flags import FLAGS
from cifar_jax.cli.given import check_given, command_words, config_folder, read_config_file
from cifar_jax.errors import UserError


def start_audit() -> int:
    """Runs `--mode=audit`; returns the exit code."""
    workdir = config_folder("workdir", "_audit")
    check_given()
    from cifar_jax.studies import audit

    return audit.audit_labels(FLAGS.config, workdir, FLAGS.folds, read_config_file())


def start_search(*space: str) -> int:
    """Runs `--mode=search`; returns the exit code.

    Args:
      *space: the parameters that come after the first one of --space.
    """
    folder = config_folder("study", "_search")
    check_given()
    from cifar_jax.studies.space import parse_space

    parameters = parse_space([*FLAGS.space, *space], FLAGS.config)
    try:
        from cifar_jax.studies import search
    except ModuleNotFoundError as error:
        advice = 'pip install -c constraints.txt -e ".[search]"'
        raise UserError(f"--mode=search needs {error.name}: {advice}") from error
    settings = (FLAGS.objective, FLAGS.trials, FLAGS.pruner, read_config_file())
    wanted = search.Search(FLAGS.config, parameters, *settings)
    return search.run_search(wanted, folder, FLAGS.storage, command_words())
