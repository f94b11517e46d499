"""The engine's thread: many requests, decoded together."""
