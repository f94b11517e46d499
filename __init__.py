"""firp: lossless multi-token decoding for large language models.

`Engine` and `SamplingParams` are what an application needs; see README.md.
"""

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.loop.generation import Chunk, Generation, Stats
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import TreeConfig

__all__ = ["Chunk", "Engine", "FirpError", "Generation", "SamplingParams", "Stats", "TreeConfig"]
