"""Decodes with onnxruntime-genai's Engine for several clients at once, for `load.py`.

Its builder makes paged caches for CUDA alone; on CPUs the engine decodes static batches, the next of
which begins when all requests of the last have ended.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from protocol import serve

EVENTS = 256


class GenaiEngine:
    ways = ("plain",)

    def __init__(self, model, threads, batch):
        vocab_size = json.loads((Path(model) / "genai_config.json").read_text())["model"]["vocab_size"]
        sessions = {"intra_op_num_threads": threads}
        # a text must end somewhere: at a token that hardly ever comes, and is not let through
        changes = {"model": {"eos_token_id": vocab_size - 1, "decoder": {"session_options": sessions}}}
        changes["engine"] = {"static_batching": {"max_batch_size": batch}}
        config = genai.Config(model)
        config.overlay(json.dumps(changes))
        self.engine = genai.Engine(genai.Model(config))
        self.events = self.engine.create_event_buffer(EVENTS)

    def together(self, clients, way):
        running = {}
        for client in range(clients.count):
            self._begin(clients, client, running)
        while running:
            for event in self.engine.run(self.events):
                client, number = running[event.request]
                if event.error_code != genai.EngineErrorCode.NONE:
                    raise RuntimeError(f"the engine answers {event.error_code}")
                clients.emit(number, [event.token])
                if event.finish_reason != genai.FinishReason.NONE:
                    del running[event.request]
                    event.request.close()
                    self._begin(clients, client, running)

    def _begin(self, clients, client, running):
        number = clients.following(client)
        if number is None:
            return
        ids = np.array(clients.prompts[number], np.int32)
        options = genai.RequestOptions()
        options.set_max_session_tokens(len(ids) + clients.tokens[number])
        request = self.engine.create_request(options=options)
        turn = genai.TurnOptions(request)
        turn.set_do_sample(False)
        turn.set_min_generated_tokens(clients.tokens[number])
        turn.set_max_generated_tokens(clients.tokens[number])
        running[request] = client, number
        request.begin_turn(ids, turn)


if __name__ == "__main__":
    serve(GenaiEngine, ["onnxruntime-genai", "onnxruntime"])
