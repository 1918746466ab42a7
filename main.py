"""The command: `python main.py --help` lists what it can do."""

from cifar_jax.cli import command

if __name__ == "__main__":
    command.run()

from cifar_jax.cli.main import main

__all__ = ["main"]
