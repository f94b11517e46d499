"""Messages as token ids, and the tokens that end an answer.

In: the files of a bundle, and its tokenizer. Out: what transformers' `apply_chat_template` gives
with `add_generation_prompt`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from firp.runtime.chat.messages import check_messages
from firp.runtime.chat.template import ChatTemplate
from firp.runtime.errors import PromptError
from firp.runtime.loop.text import encode_text
from firp.runtime.loop.text_limit import TextLimit


class ChatEncoder:
    """A chat template with its tokenizer. `ends`: the tokenizer's own end-of-sequence token, which
    ends an answer beside those of generation_config.json. limit: of texts; None: there is none.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, limit: TextLimit | None = None):
        self.template = template
        self._tokenizer = tokenizer
        self._limit = limit
        end = tokenizer.token_to_id(template.eos_token) if template.eos_token else None
        self.ends = frozenset(() if end is None else (end,))

    @classmethod
    def from_files(
        cls,
        read: Callable[[str], bytes | None],
        tokenizer: Tokenizer | None,
        limit: TextLimit | None = None,
    ) -> "ChatEncoder":
        """read: the content of a bundle's file by its name, None where it has no such file. Raises
        PromptError where messages cannot be encoded, for want of a template or a tokenizer, and
        BundleError for a template that is none.
        """
        template = ChatTemplate.from_files(read)
        if template is None or tokenizer is None:
            missing = "chat template" if template is None else "tokenizer"
            raise PromptError(
                f"the bundle has no {missing}", got="messages", fix="give a text, or export an instruct model"
            )
        template.check()
        return cls(template, tokenizer, limit)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of the messages. tools: JSON schemas of functions; add_generation_prompt: end with
        what begins an answer. Raises PromptError.
        """
        checked = check_messages(messages)
        text = self.template.render(
            checked, tools, add_generation_prompt=add_generation_prompt, **checked.variables
        )
        if self._limit is not None:
            self._limit.check(text)
        # the template writes the special tokens itself
        return encode_text(self._tokenizer, text, add_special_tokens=False)
