"""The public interface: load a bundle, generate or stream text from it.

    engine = Engine.load("bundle")
    print(engine.generate("def add(a, b):", SamplingParams(max_new_tokens=32)).text)

An `Engine` holds graphs and weights and may be shared between threads; every request gets a session
of its own.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from firp.runtime.backends.interface import Backend
from firp.runtime.backends.registry import backend_factory
from firp.runtime.bundle.calibration import Choice
from firp.runtime.bundle.format import Bundle, load_bundle
from firp.runtime.bundle.limits import Limits
from firp.runtime.drafters.interface import Drafter
from firp.runtime.drafters.make import make_drafter
from firp.runtime.errors import FirpError, PromptError
from firp.runtime.loop.decode import Step, decode
from firp.runtime.loop.generation import Chunk, Generation, Stats, collect
from firp.runtime.loop.text import TextStream, encode_text, load_tokenizer
from firp.runtime.passes.pass_plan import PREFILL_ROWS
from firp.runtime.passes.pool import SessionPool
from firp.runtime.passes.request import Needs, Request, check_prompt
from firp.runtime.passes.session import Session
from firp.runtime.sampling import Picker, SamplingParams, integer
from firp.runtime.trees.tree import TreeConfig


class Engine:
    """A bundle with its graphs loaded. Make one with `Engine.load`."""

    def __init__(self, bundle: Bundle, backend: Backend, check_hashes: bool = True):
        self.bundle = bundle
        self.backend = backend
        self.manifest = bundle.manifest
        self.model = bundle.manifest.model
        self.sessions = SessionPool(bundle, backend, backend.load(bundle, check_hashes))
        file = bundle.path / "tokenizer.json"
        self.tokenizer = load_tokenizer(file) if "tokenizer.json" in self.manifest.files else None
        self._added_tokens = self.tokenizer.get_added_tokens_decoder() if self.tokenizer else {}

    @classmethod
    def load(
        cls, path: Path | str, backend: str = "cpu", threads: int | None = None, check_hashes: bool = True
    ) -> "Engine":
        """Validate a bundle and load its graphs.

        backend: a name in `registry.BACKENDS`; threads: of each graph on the CPU, None for one a
        core; check_hashes: see `load_bundle`. Raises FirpError: the bundle is not whole, or the
        backend cannot run it.
        """
        make_backend = backend_factory(backend, threads)
        bundle = load_bundle(path, check_hashes)
        return cls(bundle, make_backend(), check_hashes)

    @property
    def limits(self) -> Limits | None:
        """Sizes that the engines were built to hold; None where nothing is built for a size."""
        return self.sessions.limits

    @property
    def choice(self) -> Choice | None:
        """The choice that `firp tune` made for this device."""
        return self.manifest.choices.get(self.backend.device)

    @property
    def best_tree(self) -> TreeConfig | None:
        """The tree to draft with here, whether or not drafting pays; None where there is none: the
        bundle has no predictors, and was not tuned for drafts by lookup.
        """
        return self.choice.tree if self.choice else self.bundle.tree

    @property
    def tree(self) -> TreeConfig | None:
        """The tree that requests decode with; None where plain decoding is faster, or all there
        is.
        """
        return None if self.choice and not self.choice.drafts else self.best_tree

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt, checked: of text, or of a list, a tuple or an array [T] of them.
        Raises PromptError.
        """
        context = self.model.max_position_embeddings
        return check_prompt(self._tokens(prompt), self.model.vocab_size, context)

    def _tokens(self, prompt: str | Sequence[int]) -> Sequence[int]:
        """Token ids of a prompt: those of its text, or as given."""
        if not isinstance(prompt, str):
            return prompt
        if not prompt:
            raise PromptError("empty prompt", got="''", expected="at least one character")
        if self.tokenizer is None:
            raise PromptError("the bundle has no tokenizer", got="a text prompt", expected="input_ids")
        return encode_text(self.tokenizer, prompt)

    def request(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Request:
        """A prompt (text, or a list, a tuple or an array [T] of token ids) and how to continue it,
        checked once. Raises PromptError for a prompt that cannot be decoded, FirpError for params
        that this bundle cannot serve.
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise FirpError("bad params", got=f"{params!r:.60}", expected="SamplingParams, or None")
        params = params or SamplingParams()
        if params.stop and self.tokenizer is None:
            raise FirpError("stop strings need a tokenizer", got="a bundle without one")
        context = self.model.max_position_embeddings
        return Request.checked(
            self._tokens(prompt), params, self._ends(params), self.model.vocab_size, context
        )

    def session(self, capacity: int, rows: int = PREFILL_ROWS) -> Session:
        """A `Session`: for one caller, who decodes any number of sequences with it, one after the
        other. It holds `capacity` cached tokens and passes of `rows` rows, or more. Raises
        FirpError when the engines, or the device's memory, do not.
        """
        least = 1 + self.manifest.num_predictors
        for name, value, low in (("capacity", capacity, 1), ("rows", rows, least)):
            if (integer(value) or 0) < low:
                raise FirpError(f"bad {name} of a session", got=f"{value!r:.60}", expected=f"at least {low}")
        return self.sessions.make(int(capacity), int(rows))

    def drafter(self, tree: TreeConfig | None, greedy: bool = True) -> Drafter:
        """Drafts for one request, with this tree; None: plain decoding. greedy: what the drafts are
        for; it changes their ranking. Raises FirpError for a tree that the bundle cannot draft.
        """
        if tree is not None:
            if not isinstance(tree, TreeConfig):
                raise FirpError("bad tree", got=f"{tree!r:.60}", expected="a TreeConfig, or None")
            tree.validate(self.manifest.num_predictors)
        return make_drafter(tree, self.manifest.num_predictors, self.bundle.correction, greedy)

    def steps(
        self, request: Request, tree: TreeConfig | None = None, picker: Picker | None = None
    ) -> Iterator[Step]:
        """The decoding steps of one request, in a session of its own; plain when `tree` is None.
        Raises FirpError at once where the tree, or the request, does not fit.
        """
        drafter = self.drafter(tree, request.params.temperature == 0)
        needs = request.needs(tree, self.manifest.num_predictors)
        self.sessions.check(needs)
        return self._steps(request, needs, drafter, picker or Picker(request.params))

    def _steps(self, request: Request, needs: Needs, drafter: Drafter, picker: Picker) -> Iterator[Step]:
        with self.sessions.lend(needs) as session:
            yield from decode(session, request, drafter, picker)

    def _ends(self, params: SamplingParams) -> frozenset[int]:
        """Tokens that end a sequence: those of the bundle, and the stop strings that are special
        tokens (never text).
        """
        special = {token.content: i for i, token in self._added_tokens.items() if token.special}
        stops = frozenset(special[stop] for stop in params.stop if stop in special)
        return stops if params.ignore_eos else stops.union(self.bundle.eos_token_ids)

    def stream(
        self,
        prompt: str | Sequence[int],
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
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise FirpError("bad cancel", got=f"{cancel!r:.60}", expected="a threading.Event, or None")
        if plain and tree is not None:
            raise FirpError(
                "plain decoding has no tree", got=f"{tree!r:.60}", fix="leave out the tree, or plain"
            )
        request = self.request(prompt, params)
        chosen = None if plain else tree or self.tree
        return self._stream(request, self.steps(request, chosen), cancel)

    def _stream(
        self, request: Request, steps: Iterator[Step], cancel: threading.Event | None
    ) -> Iterator[Chunk]:
        tokenizer = self.tokenizer
        text = TextStream(tokenizer, request.params.stop, list(request.prompt)) if tokenizer else None
        stats = Stats(prompt_tokens=len(request.prompt))
        reason = None
        for step in steps:
            stats = stats.after(step)
            tokens = []
            released = ""
            for token in step.tokens:
                tokens.append(token)
                released += text.push(token) if text else ""
                if text and text.stopped:
                    break
            yield Chunk(tokens, released if text else None, None, stats)
            reason = "stop" if text and text.stopped else step.finish_reason
            if reason is None and cancel is not None and cancel.is_set():
                reason = "cancelled"
            if reason:
                break
        rest = text.finish() if text else None
        if text and text.stopped:
            reason = "stop"  # a stop string that only the held-back text completed
        yield Chunk([], rest, reason, stats)

    def generate(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options
    ) -> Generation:
        """Decode one request to its end. `options`: as for `stream`."""
        return collect(self.stream(prompt, params, **options))
