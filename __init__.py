"""firp: lossless multi-token decoding for large language models.

`Engine` and `SamplingParams` are what an application needs; see README.md. A name is imported when
it is first used (PEP 562), so that `import firp` itself loads neither numpy nor a backend.
"""

from importlib import import_module

TYPE_CHECKING = False  # as type checkers read it; `typing` itself is left to those who need it
if TYPE_CHECKING:
    from firp.runtime.chat.conversation import Conversation
    from firp.runtime.engine import Engine
    from firp.runtime.errors import FirpError
    from firp.runtime.loop.generation import Chunk, Generation, Stats
    from firp.runtime.picking.logprobs import TokenLogprob
    from firp.runtime.sampling import SamplingParams
    from firp.runtime.scheduling.handle import Handle
    from firp.runtime.scheduling.service import EngineOptions
    from firp.runtime.scheduling.statistics import EngineStats
    from firp.runtime.structured import StructuredOutput
    from firp.runtime.trees.tree_config import TreeConfig

__all__ = [
    "Chunk",
    "Conversation",
    "Engine",
    "EngineOptions",
    "EngineStats",
    "FirpError",
    "Generation",
    "Handle",
    "SamplingParams",
    "Stats",
    "StructuredOutput",
    "TokenLogprob",
    "TreeConfig",
]
_HOMES = {
    "Chunk": "firp.runtime.loop.generation",
    "Conversation": "firp.runtime.chat.conversation",
    "Engine": "firp.runtime.engine",
    "EngineOptions": "firp.runtime.scheduling.service",
    "EngineStats": "firp.runtime.scheduling.statistics",
    "FirpError": "firp.runtime.errors",
    "Generation": "firp.runtime.loop.generation",
    "Handle": "firp.runtime.scheduling.handle",
    "SamplingParams": "firp.runtime.sampling",
    "Stats": "firp.runtime.loop.generation",
    "StructuredOutput": "firp.runtime.structured",
    "TokenLogprob": "firp.runtime.picking.logprobs",
    "TreeConfig": "firp.runtime.trees.tree_config",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use finds it here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
