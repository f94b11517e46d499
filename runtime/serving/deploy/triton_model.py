"""A bundle as a model of Triton's Python backend, decoupled: a request in, a response a step out.

In: tensors "prompt" (text) and "parameters" (a JSON object of `SamplingParams`' fields, optional). Out:
tensors "text", "token_ids" and "finish_reason" (empty but in the last response). A request that its
client cancels ends within a step. Triton gives the module that this imports.
"""

import json
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError, PromptError
from firp.runtime.loop.generation import Chunk
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.handle import Handle


class TritonPythonModel:
    """What Triton makes one of for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle that the model's configuration names."""
        parameters = json.loads(args["model_config"])["parameters"]
        setting = {name: value["string_value"] for name, value in parameters.items()}
        self._engine = Engine.load(setting["bundle"], setting["backend"])
        self._running: dict[threading.Thread, Handle] = {}
        self._lock = threading.Lock()

    def execute(self, requests: list[Any]) -> None:
        """Take requests; their responses follow from threads of their own, since the engine decodes
        them together.
        """
        for request in requests:
            sender = request.get_response_sender()
            try:
                handle = self._submit(request)
            except FirpError as error:
                _send_error(sender, error)
                continue
            thread = threading.Thread(target=self._answer, args=(handle, sender), daemon=True)
            with self._lock:
                self._running[thread] = handle
            thread.start()

    def finalize(self) -> None:
        """End what runs, and give the memory back."""
        with self._lock:
            running = dict(self._running)
        for handle in running.values():
            handle.cancel()
        for thread in running:
            thread.join()
        self._engine.close()

    def _submit(self, request: Any) -> Handle:
        prompt = _text_of(request, "prompt")
        if prompt is None:
            raise PromptError("no prompt", expected="a tensor 'prompt' of one text")
        return self._engine.submit(prompt, _params(_text_of(request, "parameters")))

    def _answer(self, handle: Handle, sender: Any) -> None:
        try:
            for chunk in handle:
                if sender.is_cancelled():
                    handle.cancel()
                last = chunk.finish_reason is not None
                sender.send(
                    _response(chunk), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
                )
        except FirpError as error:
            _send_error(sender, error)
        finally:
            with self._lock:
                self._running.pop(threading.current_thread(), None)


def _params(given: str | None) -> SamplingParams:
    try:
        fields = json.loads(given or "{}")
        return SamplingParams(**fields)
    except (ValueError, TypeError, RecursionError) as error:
        expected = "a JSON object of sampling fields"
        raise FirpError("bad parameters", got=f"{error!s:.100}", expected=expected) from error


def _text_of(request: Any, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    values = [] if tensor is None else tensor.as_numpy().reshape(-1).tolist()
    if not values:
        return None
    try:
        return values[0].decode() if isinstance(values[0], bytes) else str(values[0])
    except UnicodeDecodeError as error:
        raise FirpError(f"bad {name}", got="bytes that are no UTF-8") from error


def _response(chunk: Chunk) -> Any:
    texts = {"text": chunk.text or "", "finish_reason": chunk.finish_reason or ""}
    tensors = [pb_utils.Tensor(name, np.array([text.encode()], np.object_)) for name, text in texts.items()]
    tensors.append(pb_utils.Tensor("token_ids", np.array(chunk.token_ids, np.int32)))
    return pb_utils.InferenceResponse(tensors)


def _send_error(sender: Any, error: FirpError) -> None:
    response = pb_utils.InferenceResponse([], pb_utils.TritonError(str(error)))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
