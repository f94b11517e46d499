"""Turns a checkpoint into a bundle, and a bundle's graphs into TensorRT plans."""
