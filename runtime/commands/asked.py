"""What several commands ask for: sampling options, and the content of a line of a prompt file."""

from firp.runtime.console.options import options_from
from firp.runtime.loop.text import Prompt
from firp.runtime.sampling import SamplingParams

sampling_options = options_from(
    SamplingParams(),
    {
        "max_new_tokens": "Tokens to decode at most.",
        "temperature": "0: greedy.",
        "top_k": "Keep this many best candidates; 0: all.",
        "top_p": "Keep the smallest set of best candidates with this probability.",
        "seed": "The same seed gives the same tokens.",
    },
)


def content(prompt: Prompt) -> str | list[int]:
    """The text of a prompt, or its token ids."""
    return prompt.input_ids if prompt.text is None else prompt.text
