"""A run's folder: its lock, checkpoints and logs, and the environment that it was made in."""
