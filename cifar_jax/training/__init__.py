"""The loop, its step and its state."""
