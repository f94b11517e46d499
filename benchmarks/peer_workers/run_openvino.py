"""Decodes with OpenVINO GenAI, for `peers.py`."""

from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from protocol import serve


class OpenVino:
    ways = ("plain",)

    def __init__(self, model, threads, **properties):
        self.properties = {"INFERENCE_NUM_THREADS": threads, **properties}
        self.folder = Path(model)
        self.pipeline = openvino_genai.LLMPipeline(model, "CPU", **self.properties)

    def generate(self, ids, tokens, way, emit):
        config = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        config.apply_chat_template = False
        self.pipeline.generate(openvino.Tensor(np.array([ids])), config, Emitting(emit))

    def score(self, ids):
        core = openvino.Core()
        compiled = core.compile_model(self.folder / "openvino_model.xml", "CPU", self.properties)
        length = len(ids)
        inputs = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits = compiled.create_infer_request().infer(inputs)["logits"][0, :-1].astype(np.float64)
        return (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(length - 1), ids[1:]]).sum()


class Emitting(openvino_genai.StreamerBase):
    """Hands on tokens as they come, one or several."""

    def __init__(self, emit):
        super().__init__()
        self.emit = emit

    def write(self, token):
        self.emit(token if isinstance(token, list) else [token])
        return openvino_genai.StreamingStatus.RUNNING

    def end(self):
        """Nothing is held back."""


if __name__ == "__main__":
    serve(OpenVino, ["openvino-genai", "openvino"])
