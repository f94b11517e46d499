"""The public interface: load a bundle, generate or stream text from it.

    engine = Engine.load("bundle")
    print(engine.generate("def add(a, b):", SamplingParams(max_new_tokens=32)).text)

An `Engine` holds graphs and weights and may be shared between threads; every request gets a session
of its own.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from firp.runtime.backends.interface import Backend
from firp.runtime.backends.registry import backend_factory
from firp.runtime.bundle.calibration import Choice
from firp.runtime.bundle.engine_record import Limits
from firp.runtime.bundle.format import Bundle, load_bundle
from firp.runtime.drafters.interface import Drafter, FirpDrafter
from firp.runtime.errors import FirpError, PromptError
from firp.runtime.loop.decode import PREFILL_ROWS, Step, check_prompt, decode
from firp.runtime.loop.text import TextStream, check_text, load_tokenizer
from firp.runtime.passes.pool import SessionPool
from firp.runtime.passes.session import Session
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import TreeConfig


@dataclass(frozen=True)
class Stats:
    """What one request cost so far. The prefill emits the first token and is not counted in the
    decoding figures.
    """

    prompt_tokens: int = 0
    steps: int = 0  # decoding passes, the prefill not counted
    decoded_tokens: int = 0  # emitted by those steps, with what the last one emitted past a stop string
    # [d]: steps that accepted at least d + 1 drafts
    accepted_by_depth: list[int] = field(default_factory=list)
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

    def after(self, step: Step) -> "Stats":
        """These statistics with one step more."""
        if step.rows == 0:
            return replace(self, prefill_ms=step.times.total_ms)
        times = step.times
        by_depth = [*self.accepted_by_depth, *[0] * (step.accept_length - len(self.accepted_by_depth))]
        return replace(
            self,
            steps=self.steps + 1,
            decoded_tokens=self.decoded_tokens + len(step.tokens),
            accepted_by_depth=[count + (depth < step.accept_length) for depth, count in enumerate(by_depth)],
            lower_ms=self.lower_ms + times.lower_ms,
            predictors_ms=self.predictors_ms + times.predictors_ms,
            upper_ms=self.upper_ms + times.upper_ms,
            outside_ms=self.outside_ms + times.outside_ms,
        )


class Chunk(NamedTuple):
    """What one step added to a stream."""

    token_ids: list[int]  # [] in the closing chunk
    text: str | None  # released by these tokens, may lag behind them; None when the bundle has no tokenizer
    finish_reason: str | None  # set in the closing chunk: "stop", "length" or "cancelled"
    stats: Stats  # of the request so far


@dataclass(frozen=True)
class Generation:
    prompt_tokens: int
    token_ids: list[int]  # an end-of-sequence token included
    text: str | None  # None when the bundle has no tokenizer
    # "stop": end-of-sequence token or stop string; "length": token or context limit; "cancelled"
    finish_reason: str
    stats: Stats


class Engine:
    """A bundle with its graphs loaded. Make one with `Engine.load`."""

    def __init__(self, bundle: Bundle, backend: Backend, check_hashes: bool = True):
        self.bundle, self.backend = bundle, backend
        self.manifest, self.model = bundle.manifest, bundle.manifest.model
        self.sessions = SessionPool(bundle, backend, backend.load(bundle, check_hashes))
        file = bundle.path / "tokenizer.json"
        self.tokenizer = load_tokenizer(file) if "tokenizer.json" in self.manifest.files else None
        self._added_tokens = self.tokenizer.get_added_tokens_decoder() if self.tokenizer else {}

    @classmethod
    def load(
        cls, path: Path | str, backend: str = "cpu", threads: int | None = None, check_hashes: bool = True
    ) -> "Engine":
        """Validate a bundle and load its graphs.

        backend: a name in `registry.BACKENDS`; threads: of each graph on the CPU, None for one a core;
        check_hashes: see `load_bundle`. Raises FirpError: the bundle is not whole, or the backend
        cannot run it.
        """
        make_backend = backend_factory(backend, threads)
        bundle = load_bundle(path, check_hashes)
        return cls(bundle, make_backend(), check_hashes)

    @property
    def limits(self) -> Limits | None:
        """What the engines were built to hold; None where nothing is built for a size."""
        return self.sessions.limits

    @property
    def drafts(self) -> bool:
        """Whether the bundle has predictors; without them it decodes plainly."""
        return self.bundle.tree is not None

    @property
    def choice(self) -> Choice | None:
        """What `firp tune` found for this device."""
        return self.manifest.choices.get(self.backend.device)

    @property
    def best_tree(self) -> TreeConfig | None:
        """The tree to draft with here, whether or not drafting pays; None without predictors."""
        return self.choice.tree if self.choice else self.bundle.tree

    @property
    def tree(self) -> TreeConfig | None:
        """The tree that requests decode with; None where plain decoding is faster, or all there is."""
        return None if self.choice and not self.choice.drafts else self.best_tree

    def encode(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a prompt, checked. Raises PromptError."""
        if isinstance(prompt, str):
            if not prompt:
                raise PromptError("empty prompt", got="''", expected="at least one character")
            if self.tokenizer is None:
                raise PromptError("the bundle has no tokenizer", got="a text prompt", expected="input_ids")
            prompt = self.tokenizer.encode(check_text(prompt)).ids
        check_prompt(prompt, self.model.vocab_size, self.model.max_position_embeddings)
        return prompt

    def session(self, capacity: int, rows: int = PREFILL_ROWS) -> Session:
        """A `Session`: for one caller, who decodes any number of sequences with it, one after the
        other. It holds `capacity` cached tokens and passes of `rows` rows, or more. Raises
        FirpError when the engines, or the device's memory, do not.
        """
        return self.sessions.make(capacity, rows)

    def drafter(self, tree: TreeConfig | None = None, greedy: bool = True) -> Drafter:
        """FIRP drafts with this tree; by default the best one here. greedy: what the drafts are
        for; it changes their ranking.

        Raises FirpError when the bundle has no predictors.
        """
        if self.bundle.tree is None:
            raise FirpError(
                "the bundle has no predictors", fix="export it with --predictors, or decode plainly"
            )
        tree = tree or self.best_tree
        tree.validate(self.manifest.num_predictors)
        return FirpDrafter(tree, self.manifest.num_predictors, self.bundle.correction, greedy)

    def steps(
        self, prompt: list[int], params: SamplingParams, tree: TreeConfig | None = None, **options
    ) -> Iterator[Step]:
        """The decoding steps of one request, in a session of its own; plain when `tree` is None.
        `options`: of `decode`.
        """
        drafter = self.drafter(tree, params.temperature == 0) if tree else None
        k = self.manifest.num_predictors
        rows = max(min(len(prompt), PREFILL_ROWS) + k, tree.pass_rows(k) if tree else 1)
        capacity = min(len(prompt) + params.max_new_tokens, self.model.max_position_embeddings)
        ends, tree_rows = self._ends(params), tree.pass_rows(k) if tree else 1
        return self.sessions.steps(
            capacity,
            rows,
            tree_rows,
            lambda session: decode(session, prompt, params, ends, drafter, **options),
        )

    def _ends(self, params: SamplingParams) -> tuple[int, ...]:
        """Tokens that end a sequence: those of the bundle, and the stop strings that are special
        tokens (never text).
        """
        special = {token.content: i for i, token in self._added_tokens.items() if token.special}
        stops = tuple(special[stop] for stop in params.stop if stop in special)
        return stops if params.ignore_eos else self.bundle.eos_token_ids + stops

    def stream(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        plain: bool = False,
        tree: TreeConfig | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Chunk]:
        """Yield what each step adds, then a closing chunk with the finish reason.

        prompt: text, or token ids; plain: decode one token a pass; tree: instead of the tuned one;
        cancel: when set, the stream closes after the current step. Raises PromptError at once for a
        prompt that cannot be decoded.
        """
        params = params or SamplingParams()
        if params.stop and self.tokenizer is None:
            raise FirpError("stop strings need a tokenizer", got="a bundle without one")
        if tree is not None and (plain or not self.drafts):
            raise FirpError("plain decoding has no tree", got=f"{tree.kind} tree", fix="leave out the tree")
        chosen = None if plain else tree or self.tree
        ids = self.encode(prompt)
        return self._stream(ids, self.steps(ids, params, chosen), params, cancel)

    def _stream(
        self, prompt: list[int], steps: Iterator[Step], params: SamplingParams, cancel
    ) -> Iterator[Chunk]:
        text = TextStream(self.tokenizer, params.stop, prompt) if self.tokenizer else None
        stats, ends, last, cancelled = Stats(prompt_tokens=len(prompt)), self._ends(params), -1, False
        for step in steps:
            stats = stats.after(step)
            tokens, released = [], ""
            for last in step.tokens:
                tokens.append(last)
                released += text.push(last) if text else ""
                if text and text.stopped:
                    break
            yield Chunk(tokens, released if text else None, None, stats)
            cancelled = cancel is not None and cancel.is_set()
            if cancelled or (text and text.stopped):
                break
        rest = text.finish() if text else None
        stopped = last in ends or (text is not None and text.stopped)
        yield Chunk([], rest, "stop" if stopped else "cancelled" if cancelled else "length", stats)

    def generate(
        self, prompt: str | list[int], params: SamplingParams | None = None, **options
    ) -> Generation:
        """Decode one request to its end. `options`: as for `stream`."""
        return collect(self.stream(prompt, params, **options))


def collect(chunks: Iterable[Chunk], show: Callable[[Chunk], None] = lambda chunk: None) -> Generation:
    """A whole stream as one result; each chunk is shown as it comes."""
    token_ids, text = [], ""
    for chunk in chunks:
        show(chunk)
        token_ids += chunk.token_ids
        text += chunk.text or ""
    return Generation(
        chunk.stats.prompt_tokens,
        token_ids,
        None if chunk.text is None else text,
        chunk.finish_reason,
        chunk.stats,
    )
