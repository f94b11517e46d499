"""Decodes from a bundle: numpy and one backend, no torch."""
