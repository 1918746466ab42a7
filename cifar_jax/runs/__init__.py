"""A run's folder: its lock, checkpoints, logs and what is known about its origin."""
