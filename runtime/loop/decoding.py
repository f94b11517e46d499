"""One request being decoded: the plan of its next pass, and what becomes of its result.

In: a `Session`, a `Request`, a `Drafter`. Out: plans, and the tokens that each pass emits. Nothing of
a request changes before its pass has returned.
"""

from firp.runtime.drafters.interface import Drafter
from firp.runtime.errors import FirpError
from firp.runtime.loop.accept import Accepted, accept
from firp.runtime.loop.picker import Picker
from firp.runtime.passes.pass_plan import LEAST_PIECE, Pass, PassPlan
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import Session
from firp.runtime.picking.logprobs import TokenLogprob, token_logprob
from firp.runtime.trees.tree import chain, root_only


class Decoding:
    """A request in a session. reuse: keep what the session has cached, as far as the prompt begins
    with the same tokens. Raises PromptError when the prompt does not fit the session.
    """

    def __init__(
        self, session: Session, request: Request, drafter: Drafter, picker: Picker, reuse: bool = False
    ):
        self.session = session
        self.drafter = drafter
        self.sequence = Sequence(request, session.capacity)
        self._listed = request.params.prompt_logprobs  # of each token of the prompt; None: nobody asks
        self.prompt_logprobs: list[TokenLogprob | None] | None = None if self._listed is None else [None]
        reuse = reuse and self._listed is None
        self.reused_tokens = session.known_prefix(request.prompt) if reuse else 0
        session.rewind(self.reused_tokens)
        self._picker = picker
        self._logits = session.batch.memory.free_reads or picker.needs_logits
        self._drafts = True

    @property
    def prefilling(self) -> bool:
        """Whether the prompt is not computed yet."""
        return len(self.sequence.tokens) == len(self.sequence.request.prompt)

    @property
    def finish_reason(self) -> str | None:
        """ "stop" after a token that ends the text, "length" when nothing more fits, else None."""
        return self.sequence.finish_reason

    def next_piece(self, most: int) -> PassPlan:
        """The next piece of the prompt, of `most` tokens at most. Its bits do not depend on where the
        prompt is cut, as long as no piece is a single token.
        """
        prompt, start = self.sequence.tokens, self.session.length
        every_row = self._listed is not None
        if every_row:
            most = min(most, self.session.batch.prompt_decoded_rows)
        most = max(most, LEAST_PIECE)
        if len(prompt) - start - most == 1:
            most += 1 if most == LEAST_PIECE else -1
        tokens = prompt[start : start + most]
        last = len(tokens) - 1
        drafts = start + len(tokens) == len(prompt) and self.sequence.remaining > 1
        offsets = self.drafter.prompt_offsets if drafts else 0
        sources = (last,) if offsets else ()
        decode = None if every_row else (last,)
        return PassPlan(chain(tokens), sources, offsets, decode, self._logits or every_row, prompt=True)

    def propose(self, draft_pass: bool = True) -> PassPlan:
        """The tree to verify next. draft_pass: whether it may run one."""
        if not self._drafts:
            return self.plain()
        # a step emits one token more than it accepts
        session = self.session if draft_pass else None
        proposal = self.drafter.propose(self.sequence, session, self.sequence.remaining - 1)
        return PassPlan(*proposal, bring_logits=self._logits)

    def plain(self) -> PassPlan:
        """The next token alone, without drafts."""
        return PassPlan(root_only(self.sequence.root), bring_logits=self._logits)

    def take(self, plan: PassPlan, result: Pass) -> Accepted:
        """Keep what a pass decided; return what it emits, no token before the end of the prompt. Raises
        FirpError when the logits are not finite; nothing is kept then. A draft that is not finite spoils
        its whole pass: nothing is emitted either, and the request goes on without drafts.
        """
        if plan.prompt:
            return self._take_piece(plan, result)
        try:
            accepted = accept(plan.tree, result, self.sequence, self._picker)
        except FirpError:
            if len(plan.tree.tokens) == 1 and not plan.sources:
                raise
            self._drafts = False
            return Accepted([], [])
        self.session.commit(accepted.rows)
        self._end(accepted, accepted.rows, result)
        return accepted

    def _take_piece(self, plan: PassPlan, result: Pass) -> Accepted:
        prompt, tokens = self.sequence.tokens, plan.tree.tokens
        start = self.session.length
        end = start + len(tokens)
        accepted = Accepted([], [])
        if end == len(prompt):
            accepted = accept(root_only(self.sequence.root), result.last(), self.sequence, self._picker)
        if self._listed is not None:
            following = prompt[start + 1 : end + 1]
            pairs = zip(result.logits, following, strict=False)
            self.prompt_logprobs += [token_logprob(*pair, self._listed) for pair in pairs]
        self.session.commit(range(len(tokens)))
        if accepted.tokens:
            self._end(accepted, [len(tokens) - 1], result)
        return accepted

    def _end(self, accepted: Accepted, rows: list[int], result: Pass) -> None:
        self.drafter.observe(rows, result)
        self.sequence.extend(accepted.tokens, accepted.ended)
