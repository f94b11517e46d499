"""Options that several commands ask for: sampling."""

from firp.runtime.console.options import options_from
from firp.runtime.sampling import SamplingParams

_SAMPLING = {
    "max_new_tokens": "Tokens to decode at most.",
    "temperature": "0: greedy.",
    "top_k": "Keep this many best candidates; 0: all.",
    "top_p": "Keep the smallest set of best candidates with this probability.",
    "seed": "The same seed gives the same tokens.",
}
sampling_options = options_from(SamplingParams(), _SAMPLING)
# an answer ends by itself, as a text that is continued need not
answer_options = options_from(SamplingParams(max_new_tokens=1024), _SAMPLING)
