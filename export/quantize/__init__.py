"""Weights as integers: what each layer is rounded to, from what its inputs are, and what that costs."""
