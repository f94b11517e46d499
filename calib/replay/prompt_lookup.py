"""Prompt lookup: drafts copied from the text so far, the baseline that needs no training (Saxena
2023, in Hugging Face too).

In: sequences. Out: a `Replay`. The longest earlier match of the last tokens is looked up; what
followed it is the draft.
"""

from firp.calib.replay.replay import Replay
from firp.calib.text.sequence import TokenSequence

MAX_NGRAM = 3


def replay_lookup(sequences: list[TokenSequence], drafts: int) -> Replay:
    """Decode the sequences again, each step with up to `drafts` tokens copied from the text before
    it.
    """
    tokens = steps = undrafted = 0
    for sequence in sequences:
        text = sequence.tokens.tolist()
        root = sequence.prompt_tokens
        while root < len(text) - 1:
            guessed = _lookup(text[: root + 1], min(drafts, len(text) - root - 2))
            accepted = 0
            while accepted < len(guessed) and guessed[accepted] == text[root + accepted + 1]:
                accepted += 1
            undrafted += not guessed
            root += accepted + 1
            tokens += accepted + 1
            steps += 1
    return Replay(tokens, steps, undrafted, [])


def _lookup(text: list[int], drafts: int) -> list[int]:
    for size in range(MAX_NGRAM, 0, -1):
        tail = text[-size:]
        for start in range(len(text) - size - 1, -1, -1):  # the latest match first
            if text[start : start + size] == tail:
                return text[start + size : start + size + drafts]
    return []
