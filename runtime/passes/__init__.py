"""Passes of the model over rows, with the keys and values that they leave behind."""
