"""Decodes with llama.cpp for several clients at once, for `load.py`: its parallel decoding, through the
functions that llama-cpp-python binds, for its server takes one request after the other.

Every step is one batch: a token of each sequence that decodes, and prompts of those that begin, whole
where they fit.
"""

import ctypes

import llama_cpp
from protocol import serve

ROWS = 512  # of a batch, llama.cpp's default for what it computes at once


class Sequence:
    """A request in a place of the cache. left: tokens that a batch has to hold yet."""

    def __init__(self, number, ids):
        self.number, self.left, self.length = number, list(ids), 0


class LlamaParallel:
    ways = ("plain",)

    def __init__(self, model, threads, batch, context):
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context * batch, batch
        params.n_batch = params.n_ubatch = ROWS
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context of this size")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.rows = llama_cpp.llama_batch_init(ROWS, 0, 1)
        self.greedy = llama_cpp.llama_sampler_init_greedy()

    def together(self, clients, way):
        places = {}
        for place in range(clients.count):
            self._begin(clients, place, places)
        while places:
            sampled = self._fill(places)
            if status := llama_cpp.llama_decode(self.context, self.rows):
                raise RuntimeError(f"llama_decode answers {status}")
            for row, place in sampled:
                token = llama_cpp.llama_sampler_sample(self.greedy, self.context, row)
                sequence = places[place]
                sequence.left = [token]
                if clients.emit(sequence.number, [token]):
                    del places[place]
                    llama_cpp.llama_memory_seq_rm(self.memory, place, -1, -1)
                    self._begin(clients, place, places)

    def _begin(self, clients, place, places):
        number = clients.following(place)
        if number is not None:
            places[place] = Sequence(number, clients.prompts[number])

    def _fill(self, places):
        """Put rows into the batch, first of sequences that decode; returns the rows whose next token is
        wanted, each with its place.
        """
        rows, sampled, count = self.rows, [], 0
        for place, sequence in sorted(places.items(), key=lambda item: len(item[1].left)):
            taken = sequence.left[: ROWS - count]
            for token in taken:
                rows.token[count], rows.pos[count] = token, sequence.length
                rows.n_seq_id[count], rows.seq_id[count][0] = 1, place
                rows.logits[count] = 0
                sequence.length += 1
                count += 1
            sequence.left = sequence.left[len(taken) :]
            if taken and not sequence.left:
                rows.logits[count - 1] = 1
                sampled.append((count - 1, place))
        rows.n_tokens = count
        return sampled


if __name__ == "__main__":
    serve(LlamaParallel, ["llama-cpp-python"])
