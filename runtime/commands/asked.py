"""Options that several commands ask for: sampling."""

from firp.runtime.console.options import options_from
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
