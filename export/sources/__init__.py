"""Checkpoints as they are found on disk, read as tables of tensors."""
