"""The public interface: load a bundle, generate or stream text from it.

    engine = Engine.load("bundle")
    print(engine.generate("def add(a, b):", SamplingParams(max_new_tokens=32)).text)

An `Engine` holds graphs and weights and may be shared between threads; every request gets a session of its own.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from firp.runtime.backend import Backend
from firp.runtime.bundle import Bundle, graph_names, load_bundle
from firp.runtime.errors import FirpError, PromptError
from firp.runtime.onnxruntime_backend import OnnxRuntimeBackend
from firp.runtime.sampling import SamplingParams
from firp.runtime.session import PREFILL_ROWS, Drafter, FirpDrafter, Session, Step, check_prompt, decode
from firp.runtime.text import TextStream, load_tokenizer
from firp.runtime.tree import TreeConfig

BACKENDS = {"cpu": OnnxRuntimeBackend}


@dataclass
class Stats:
    """What one request cost. The first step is the prefill: it emits one token and is not counted in the decode figures."""

    prompt_tokens: int = 0
    steps: int = 0  # decoding passes, the prefill not counted
    decoded_tokens: int = 0  # emitted by those steps
    accepted_by_depth: list[int] = field(default_factory=list)  # [d]: steps that accepted at least d + 1 drafts
    prefill_ms: float = 0.0
    lower_ms: float = 0.0  # decoding steps only, as are the next three
    predictors_ms: float = 0.0
    upper_ms: float = 0.0
    outside_ms: float = 0.0  # in the loop itself, outside the graphs

    @property
    def tokens_per_step(self) -> float:
        """Tokens emitted for each decoding pass; plain decoding has 1."""
        return self.decoded_tokens / self.steps if self.steps else 1.0

    @property
    def decode_ms(self) -> float:
        return self.lower_ms + self.predictors_ms + self.upper_ms + self.outside_ms

    def add(self, step: Step) -> None:
        graphs_ms = step.times.lower_ms + step.times.predictors_ms + step.times.upper_ms
        if not self.prefill_ms:
            self.prefill_ms = step.times.total_ms
            return
        self.steps += 1
        self.decoded_tokens += len(step.tokens)
        self.lower_ms += step.times.lower_ms
        self.predictors_ms += step.times.predictors_ms
        self.upper_ms += step.times.upper_ms
        self.outside_ms += step.times.total_ms - graphs_ms
        self.accepted_by_depth += [0] * (step.accept_length - len(self.accepted_by_depth))
        for depth in range(step.accept_length):
            self.accepted_by_depth[depth] += 1


class Chunk(NamedTuple):
    """What one step added to a stream."""

    token_ids: list[int]  # [] in the closing chunk
    text: str  # released by these tokens; may lag behind them
    finish_reason: str | None  # set in the closing chunk: "stop", "length" or "cancelled"
    stats: Stats  # of the request so far


@dataclass(frozen=True)
class Generation:
    prompt_tokens: int
    token_ids: list[int]  # an end-of-sequence token included
    text: str | None  # None when the bundle has no tokenizer
    finish_reason: str  # "stop": end-of-sequence token or stop string; "length": token or context limit; "cancelled"
    stats: Stats


class Engine:
    """A bundle with its graphs loaded. Make one with `Engine.load`."""

    def __init__(self, bundle: Bundle, backend: Backend):
        self.bundle, self.backend = bundle, backend
        self.manifest, self.model = bundle.manifest, bundle.manifest.model
        names = graph_names(self.manifest.num_predictors)
        self.graphs = {name: backend.load(bundle.graph_path(name), self.manifest.graphs[name]) for name in names}
        file = bundle.path / "tokenizer.json"
        self.tokenizer = load_tokenizer(file) if "tokenizer.json" in self.manifest.files else None

    @classmethod
    def load(cls, path: Path | str, backend: str = "cpu", threads: int | None = None, check_hashes: bool = True) -> "Engine":
        """Validate a bundle and load its graphs.

        backend: a name in BACKENDS; threads: of each graph, None for one a core; check_hashes: see `load_bundle`.
        Raises FirpError: the bundle is not whole, or the backend cannot run it.
        """
        if backend not in BACKENDS:
            raise FirpError("unknown backend", got=repr(backend), expected=" or ".join(BACKENDS))
        return cls(load_bundle(path, check_hashes), BACKENDS[backend](threads))

    @property
    def drafts(self) -> bool:
        """Whether the bundle has predictors; without them it decodes plainly."""
        return self.bundle.tree is not None

    def encode(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a prompt, checked. Raises PromptError."""
        if isinstance(prompt, str):
            if not prompt:
                raise PromptError("empty prompt", got="''", expected="at least one character")
            if self.tokenizer is None:
                raise PromptError("the bundle has no tokenizer", got="a text prompt", expected="input_ids")
            prompt = self.tokenizer.encode(prompt).ids
        check_prompt(prompt, self.model.vocab_size, self.model.max_position_embeddings)
        return prompt

    def session(self, capacity: int, rows: int = PREFILL_ROWS) -> Session:
        """Buffers for one sequence of up to `capacity` tokens and passes of up to `rows` rows, pseudo rows included."""
        return Session(self.manifest, self.graphs, capacity, rows)

    def drafter(self, tree: TreeConfig | None = None) -> Drafter:
        """FIRP drafts with this tree; the bundle's own by default. Raises FirpError when the bundle has no predictors."""
        if self.bundle.tree is None:
            raise FirpError("the bundle has no predictors", fix="export it with --predictors, or decode plainly")
        tree = tree or self.bundle.tree
        tree.validate(self.manifest.num_predictors)
        return FirpDrafter(tree)

    def steps(self, prompt: list[int], params: SamplingParams, tree: TreeConfig | None = None, **options) -> Iterator[Step]:
        """The decoding steps of one request, in a session of its own; plain when `tree` is None. `options`: of `decode`."""
        drafter = self.drafter(tree) if tree else None
        sources = (tree.draft_sources or tree.rows) if tree else 0
        rows = max(min(len(prompt), PREFILL_ROWS), tree.rows if tree else 1) + sources * self.manifest.num_predictors
        capacity = min(len(prompt) + params.max_new_tokens, self.model.max_position_embeddings)
        return decode(self.session(capacity, rows), prompt, params, self.bundle.eos_token_ids, drafter, **options)

    def stream(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        plain: bool = False,
        tree: TreeConfig | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Chunk]:
        """Yield what each step adds, then a closing chunk with the finish reason.

        prompt: text, or token ids; plain: decode one token a pass; tree: instead of the bundle's own; cancel: when set, the
        stream closes after the current step. Raises PromptError at once for a prompt that cannot be decoded.
        """
        params = params or SamplingParams()
        if params.stop and self.tokenizer is None:
            raise FirpError("stop strings need a tokenizer", got="a bundle without one")
        if tree is not None and (plain or not self.drafts):
            raise FirpError("plain decoding has no tree", got=f"{tree.kind} tree", fix="leave out the tree")
        chosen = None if plain else tree or self.bundle.tree
        ids = self.encode(prompt)
        return self._stream(ids, self.steps(ids, params, chosen), params, cancel)

    def _stream(self, prompt: list[int], steps: Iterator[Step], params: SamplingParams, cancel) -> Iterator[Chunk]:
        text = TextStream(self.tokenizer, params.stop) if self.tokenizer else None
        stats, last, reason = Stats(prompt_tokens=len(prompt)), -1, None
        for step in steps:
            stats.add(step)
            tokens, released = [], ""
            for last in step.tokens:
                tokens.append(last)
                released += text.push(last) if text else ""
                if text and text.stopped:
                    reason = "stop"
                    break
            yield Chunk(tokens, released, None, stats)
            if reason is None and cancel is not None and cancel.is_set():
                reason = "cancelled"
            if reason:
                break
        ended = not params.ignore_eos and last in self.bundle.eos_token_ids
        yield Chunk([], text.finish() if text else "", "stop" if ended else reason or "length", stats)

    def generate(self, prompt: str | list[int], params: SamplingParams | None = None, **options) -> Generation:
        """Decode one request to its end. `options`: as for `stream`."""
        token_ids, text = [], ""
        for chunk in self.stream(prompt, params, **options):
            token_ids += chunk.token_ids
            text += chunk.text
        return Generation(chunk.stats.prompt_tokens, token_ids, text if self.tokenizer else None, chunk.finish_reason, chunk.stats)
