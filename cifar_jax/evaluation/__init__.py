"""Applies trained models: logits, test-time augmentation, scores."""
