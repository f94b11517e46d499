"""The public interface: load a bundle, generate or stream text from it.

    engine = Engine.load("bundle")
    print(engine.generate("def add(a, b):", SamplingParams(max_new_tokens=32)).text)
    print(engine.chat([{"role": "user", "content": "What is gravity?"}]).text)

An `Engine` holds graphs and weights and may be shared between threads and event loops; one thread
of its own decodes all requests together.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from firp.runtime.arguments import PATH, TEXT, TRUTH, checked, instance, integer, more_than_0
from firp.runtime.backends.interface import Backend
from firp.runtime.backends.registry import backend_factory
from firp.runtime.bundle.calibration import Choice
from firp.runtime.bundle.format import Bundle, check_large_files, load_bundle
from firp.runtime.bundle.limits import Limits
from firp.runtime.bundle.precision import refuse_blocks
from firp.runtime.calls import Calls
from firp.runtime.chat.conversation import Conversation
from firp.runtime.chat.encoder import ChatEncoder
from firp.runtime.chat.messages import check_messages, check_variables
from firp.runtime.drafters.interface import Drafter
from firp.runtime.drafters.make import make_drafter
from firp.runtime.errors import FirpError
from firp.runtime.grammar.walk import Walk
from firp.runtime.loop.decode import Step, decode
from firp.runtime.loop.picker import Picker
from firp.runtime.loop.text import load_tokenizer
from firp.runtime.observer import Observer
from firp.runtime.passes.pass_plan import PREFILL_ROWS
from firp.runtime.passes.pool import SessionPool
from firp.runtime.passes.request import Needs, Request
from firp.runtime.passes.session import Session
from firp.runtime.requests import PARAMS, Prompt, Requests
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.handle import Handle
from firp.runtime.scheduling.service import EngineOptions, Service
from firp.runtime.scheduling.statistics import EngineStats
from firp.runtime.trees.tree_config import CHAIN, TreeConfig

_READ_AT_ONCE = 32 << 20  # bytes of a file whose hash is checked before graphs are loaded, not beside


class Engine(Calls):
    """A bundle with its graphs loaded. Make one with `Engine.load`; it closes with `with`."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        check_hashes: bool = True,
        options: EngineOptions | None = None,
        observer: Observer | None = None,
    ):
        self.bundle = bundle
        self.backend = backend
        self.manifest = bundle.manifest
        self.model = bundle.manifest.model
        self.sessions = SessionPool(bundle, backend, backend.load(bundle, check_hashes))
        file = bundle.path / "tokenizer.json"
        self.tokenizer = load_tokenizer(file) if "tokenizer.json" in self.manifest.files else None
        self._requests = Requests(bundle, self.tokenizer)
        latency = self.choice.latency if self.choice else None
        self._service = Service(
            self.manifest,
            self.sessions.batch,
            self.limits,
            latency,
            self.tokenizer,
            options or EngineOptions(),
            observer,
        )

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all requests, whose last chunk has the reason "cancelled", and give memory back. A closed
        engine takes no more requests.
        """
        self._service.close()

    @property
    def healthy(self) -> bool:
        """Whether it takes requests: it is not closed, and its thread is alive."""
        return self._service.healthy

    def stats(self) -> EngineStats:
        """Totals since it was loaded, and what it holds now."""
        return self._service.stats()

    @classmethod
    def load(
        cls,
        path: Path | str,
        backend: str = "cpu",
        threads: int | None = None,
        check_hashes: bool = True,
        options: EngineOptions | None = None,
        observer: Observer | None = None,
    ) -> "Engine":
        """Validate a bundle and load its graphs.

        backend: a name in `registry.BACKENDS`; threads: of each graph on the CPU, None for one a
        core; check_hashes: see `load_bundle`; options: how many requests run and wait, and the memory
        that they may take; observer: is told of requests and steps. Raises FirpError: the bundle is
        not whole, or the backend cannot run it.
        """
        checked("options", options, instance(EngineOptions).or_none())
        make_backend = backend_factory(backend, threads)
        bundle = load_bundle(path, check_hashes, _READ_AT_ONCE)
        made = make_backend()
        if not check_hashes:
            return cls(bundle, made, False, options, observer)
        with ThreadPoolExecutor(1) as beside:  # weights are read twice at once: from the disk only once
            hashes = beside.submit(check_large_files, bundle, _READ_AT_ONCE)
            try:
                return cls(bundle, made, True, options, observer)
            finally:
                hashes.result()  # what raises here is the reason of what failed above

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
        bundle has no predictors, and was not tuned for drafts by lookup, or its weights lie in blocks.
        """
        quantization = self.manifest.quantization
        if quantization and not quantization.takes_drafts:
            return None
        return self.choice.tree if self.choice else self.bundle.tree

    @property
    def tree(self) -> TreeConfig | None:
        """The tree that requests decode with; None where plain decoding is faster, or all there
        is.
        """
        return None if self.choice and not self.choice.drafts else self.best_tree

    @property
    def forced_tree(self) -> TreeConfig | None:
        """The tree of a request with a grammar, where there is no other: what the grammar forces; None
        where the bundle takes no drafts.
        """
        quantization = self.manifest.quantization
        if quantization and not quantization.takes_drafts:
            return None
        rows = TreeConfig.forced().rows
        return TreeConfig.forced(min(rows, self.limits.max_rows) if self.limits else rows)

    @property
    def context(self) -> int:
        """Tokens that a session holds at most: the model's context, or what the engines hold."""
        context = self.model.max_position_embeddings
        return min(context, self.limits.max_context) if self.limits else context

    @property
    def chat_encoder(self) -> ChatEncoder:
        """What makes token ids of messages. Raises PromptError where the bundle has no chat template
        or no tokenizer.
        """
        return self._requests.chat_encoder

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked: of text, of messages, or of a list, a tuple or an array
        [T] of them. Raises PromptError.
        """
        return self._requests.encode(prompt)

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Request:
        """A prompt and how to continue it, checked once.

        prompt: text, a list, a tuple or an array [T] of token ids, or messages, which go through the
        chat template; tools: JSON schemas of functions, for messages alone. Raises PromptError for
        a prompt that cannot be decoded, FirpError for params that this bundle cannot serve.
        """
        return self._requests.make(prompt, params, tools)

    def needs(self, request: Request, tree: TreeConfig | None) -> Needs:
        """Sizes that a request needs of a session, decoded with this tree; None: plainly."""
        return request.needs(tree, self.manifest.num_predictors)

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

    def drafter(
        self,
        tree: TreeConfig | None,
        greedy: bool = True,
        walk: Walk | None = None,
    ) -> Drafter:
        """Drafts for one request, with this tree; None: plain decoding. greedy: what the drafts are
        for; it changes their ranking; walk: of the request's grammar. Raises FirpError for a tree that
        the bundle cannot draft.
        """
        if tree is not None:
            if not isinstance(tree, TreeConfig):
                raise FirpError("bad tree", got=f"{tree!r:.60}", expected="a TreeConfig, or None")
            tree.validate(self.manifest.num_predictors)
            self._check_exact(tree)
        return make_drafter(tree, self.manifest.num_predictors, self.bundle.correction, greedy, walk)

    def _check_exact(self, tree: TreeConfig) -> None:
        """Only a chain's rows see the keys of a path where plain decoding sees them. Elsewhere sums
        are added up in another order, and rounding to int8 makes a step of the last bit.
        """
        quantization = self.manifest.quantization
        refuse_blocks(quantization, "a tree")
        if quantization and tree.kind != CHAIN:
            raise FirpError(
                f"{quantization.method} bundles draft chains",
                got=f"a {tree.kind} tree",
                expected=f"kind {CHAIN}",
                fix="use TreeConfig.chain, or export with --quantize none",
            )

    def steps(
        self,
        request: Request,
        tree: TreeConfig | None = None,
        picker: Picker | None = None,
    ) -> Iterator[Step]:
        """The decoding steps of one request, in a session of its own; plain when `tree` is None.
        Raises FirpError at once where the tree, or the request, does not fit.
        """
        drafter = self.drafter(tree, request.params.temperature == 0, request.walk())
        needs = self.needs(request, tree)
        self.sessions.check(needs)
        return self._steps(request, needs, drafter, picker or Picker(request))

    def _steps(self, request: Request, needs: Needs, drafter: Drafter, picker: Picker) -> Iterator[Step]:
        with self.sessions.lend(needs) as session:
            yield from decode(session, request, drafter, picker)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        plain: bool = False,
        tree: TreeConfig | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
        cancel: threading.Event | None = None,
    ) -> Handle:
        """Begin to decode a request; it runs together with all others.

        prompt and tools: as for `request`; plain: decode one token a pass; tree: instead of the
        tuned one, whose drafts stop while they lose; a tree that is given drafts to the end;
        deadline_s: seconds from now, the queue included, after which it ends with the reason
        "deadline"; request_id: for logs and metrics, of no other request that has not ended; cancel:
        when set, the request ends after the current step. Raises PromptError for a prompt that cannot
        be decoded, EngineBusyError when the queue is full, RequestTooLargeError for more than the
        memory of the engine.
        """
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise FirpError("bad cancel", got=f"{cancel!r:.60}", expected="a threading.Event, or None")
        deadline_s = checked("deadline_s", deadline_s, more_than_0(float("inf")).or_none())
        checked("request_id", request_id, TEXT.or_none())
        request = self.request(prompt, params, tools)
        chosen = self._chosen(plain, tree, request.params)
        drafter = self.drafter(chosen, request.params.temperature == 0, walk=request.walk())
        needs = self.needs(request, chosen)
        self.sessions.check(needs)
        return self._service.submit(request, needs, drafter, tree is None, deadline_s, request_id, cancel)

    def _chosen(self, plain: bool, tree: TreeConfig | None, params: SamplingParams) -> TreeConfig | None:
        """The tree to decode with; None: plainly. What a grammar forces is drafted without another
        tree, too.
        """
        if checked("plain", plain, TRUTH) and tree is not None:
            raise FirpError(
                "plain decoding has no tree", got=f"{tree!r:.60}", fix="leave out the tree, or plain"
            )
        if plain or tree is not None:
            return tree
        return self.tree or (self.forced_tree if params.structured else None)

    def conversation(
        self,
        params: SamplingParams | None = None,
        system: str | None = None,
        plain: bool = False,
        tree: TreeConfig | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        saved: Path | str | None = None,
    ) -> Conversation:
        """Turns that keep their cache. system: the first message; plain, tree: as for `submit`;
        chat_template_kwargs: as for `stream_chat`; saved: a file that `Conversation.save` wrote, to go
        on from. Raises FirpError where the bundle cannot chat, the tree does not fit, or the file is
        damaged or of another bundle.
        """
        system = checked("system", system, TEXT.or_none())
        params = checked("params", params, PARAMS) or SamplingParams()
        chosen = self._chosen(plain, tree, params)
        self.drafter(chosen)
        self.chat_encoder  # noqa: B018 - a bundle that cannot chat says so now
        variables = check_variables(chat_template_kwargs)
        conversation = Conversation(self, params, system, plain, tree, variables)
        if saved is not None:
            restored = self._service.restore_prefix(checked("saved", saved, PATH), check_messages)
            conversation.messages = list(restored.notes)
        return conversation

    def save_prefix(self, prompt: Prompt, path: Path, notes: Sequence[Mapping[str, Any]]) -> int:
        """Write what the cache holds of the beginning of a prompt, and messages beside it; return how
        many tokens it holds.
        """
        return self._service.save_prefix(self.encode(prompt), path, notes)
