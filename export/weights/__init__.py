"""Weights on their way from a checkpoint to a bundle."""
