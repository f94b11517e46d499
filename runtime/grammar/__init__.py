"""Grammars: what an output may be, compiled for a tokenizer, and the walk along an output."""
