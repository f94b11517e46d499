"""Proof that a bundle says what the model says."""
