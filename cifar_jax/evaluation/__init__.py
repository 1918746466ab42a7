"""A trained model: its logits, its scores."""
