"""The modes in which several runs answer one question. Imports no JAX."""

from cifar_jax import files
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
    folder, storage = config_folder("study", "_search"), _read_storage()
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
    return search.run_search(wanted, folder, storage, command_words())


def _read_storage() -> str | None:
    """Returns the address or the path of the file that --storage names.

    Raises:
      UserError: no such file can be made.
    """
    given: str | None = FLAGS.storage
    if given is None or "://" in given:
        return given
    path = files.user_path(given)
    if not given or path.is_dir():
        raise UserError(f"--storage={given} is not a file: name one, or leave it out")
    if not path.parent.is_dir():
        raise UserError(
            f"--storage={given}: the folder {path.parent} does not exist: create it, or name "
            "another file"
        )
    return str(path)
