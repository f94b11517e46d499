"""Architectures as data: a short recipe a family, and the table of them."""
