"""Decodes with transformers in float32, for `peers.py`: plainly, and with its own prompt lookup."""

import torch
from protocol import serve
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

LOOKUP_TOKENS = 10  # drafts a step, as in the documentation of transformers


class Transformers:
    ways = ("plain", "prompt lookup")

    def __init__(self, model, threads):
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        config = self.model.generation_config
        config.eos_token_id = config.pad_token_id = self.model.config.eos_token_id = None

    @torch.inference_mode()
    def generate(self, ids, tokens, way, emit):
        drafts = {} if way == "plain" else {"prompt_lookup_num_tokens": LOOKUP_TOKENS}
        prompt = torch.tensor([ids])
        mask = torch.ones_like(prompt)
        streamer = Emitting(emit)
        self.model.generate(
            prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False, streamer=streamer, **drafts
        )

    @torch.inference_mode()
    def score(self, ids):
        logits = self.model(torch.tensor([ids])).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")


class Emitting(BaseStreamer):
    """Hands on what is streamed after the prompt."""

    def __init__(self, emit):
        self.emit = emit
        self.prompt_is_out = False

    def put(self, value):
        if self.prompt_is_out:
            self.emit(value.flatten().tolist())
        self.prompt_is_out = True

    def end(self):
        """Nothing is held back."""


if __name__ == "__main__":
    serve(Transformers, ["transformers", "torch"])
