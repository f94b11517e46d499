"""Attention of one layer: by heads or to latent rows, with sinks, with a window, by both cache contracts."""
