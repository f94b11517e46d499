"""What a calibration is asked for, checked before it starts.

In: `CalibrationRequest`. Out: `Prepared`, which is everything that the model and the data say; or a
FirpError, with nothing written.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from firp.calib.replay.layer_sweep import layers_to_try
from firp.calib.text.documents import load_documents
from firp.calib.text.tokens import check_ids, encode_prompts, model_tokenizer
from firp.calib.training.device import available_memory, check_device
from firp.calib.training.memory import require_training_memory
from firp.calib.training.options import AUTO, TrainOptions
from firp.export.bundle.predictor_dir import MARKER
from firp.export.sources.checkpoint import Checkpoint
from firp.export.sources.open import open_checkpoint
from firp.export.target_folder import check_target
from firp.export.weights.fingerprint import fingerprint
from firp.runtime.arguments import PATH, TRUTH, Rule, check_fields, instance
from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.chat.encoder import ChatEncoder
from firp.runtime.chat.messages import is_messages
from firp.runtime.chat.template import ChatTemplate
from firp.runtime.engine import Prompt
from firp.runtime.errors import FirpError

# options that a resumed run may change
RESUMABLE_CHANGES = ("learning_rate", "batch", "accumulate", "anchors")


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, on what, and where to."""

    model: Path  # a Hugging Face directory, or a GGUF file
    output: Path
    data: tuple[Path, ...] = ()  # text files, .jsonl, directories
    # the model continues these, and trains on what it wrote
    prompts: tuple[Prompt, ...] = ()
    options: TrainOptions = field(default_factory=TrainOptions)
    latency: LatencyTable | None = None  # of the target device; None: measured here, where this is a CPU
    resume: bool = False

    def __post_init__(self):
        """Raises FirpError for a value of another kind."""
        check_fields(self, _FIELDS)


def _several(value: Any) -> tuple | None:
    return tuple(value) if isinstance(value, list | tuple) else None


_FIELDS = {
    "model": PATH,
    "output": PATH,
    "data": Rule(_several, lambda paths: all(isinstance(path, str | Path) for path in paths), "paths"),
    "prompts": Rule(_several, lambda prompts: True, "prompts: texts, token ids or messages"),
    "options": instance(TrainOptions),
    "latency": instance(LatencyTable).or_none(),
    "resume": TRUTH,
}


class Prepared(NamedTuple):
    """A request that can be run, with what was read for it."""

    checkpoint: Checkpoint
    default_layer: int  # the prediction layer asked for; the usual one where a sweep chooses
    documents: list[list[int]]  # token ids of each
    prompts: list[list[int]]  # likewise, those that the model continues
    ends: tuple[int, ...]  # tokens that end what it writes


def prepare(request: CalibrationRequest) -> Prepared:
    """Check the request and read its data. Raises FirpError: bad model, data, options or target;
    not enough memory.
    """
    check_target(request.output, MARKER)
    checkpoint = open_checkpoint(request.model)
    options = request.options
    wanted = options.prediction_layer
    default_layer = checkpoint.prediction_layer(None if wanted == AUTO else wanted)
    lowest = layers_to_try(checkpoint.config.num_hidden_layers)[0] if wanted == AUTO else default_layer
    _check_window(checkpoint, options)
    check_device(options.device)
    require_training_memory(checkpoint, options, lowest, available_memory(options.device))
    tokenizer = model_tokenizer(checkpoint)
    if not request.data and not request.prompts:
        raise FirpError(
            "nothing to calibrate on",
            got="no data",
            expected="text files, or prompts that the model continues",
        )
    chat = ChatTemplate.from_files(checkpoint.companion)
    documents = load_documents(list(map(Path, request.data)), tokenizer, chat) if request.data else []
    prompts = encode_prompts(request.prompts, tokenizer, chat)
    check_ids([*documents, *prompts], checkpoint.config.vocab_size)
    _check_latency(request.latency, checkpoint)
    ends = checkpoint.eos_token_ids
    if chat and any(map(is_messages, request.prompts)):
        ends += tuple(sorted(ChatEncoder(chat, tokenizer).ends.difference(ends)))
    return Prepared(checkpoint, default_layer, documents, prompts, ends)


def _check_window(checkpoint: Checkpoint, options: TrainOptions) -> None:
    """Raises FirpError when the model's context is too short for anchors and what they guess."""
    window = min(options.window, checkpoint.config.max_position_embeddings)
    needed = 2 * options.num_predictors + 2
    if window < needed:
        raise FirpError(
            "context too short to train on", got=f"{window} tokens", expected=f"at least {needed}"
        )


def _check_latency(latency: LatencyTable | None, checkpoint: Checkpoint) -> None:
    """Raises FirpError for a table that was measured on a model of another depth."""
    layers = checkpoint.config.num_hidden_layers
    if latency and latency.num_hidden_layers != layers:
        raise FirpError(
            "latency table of another model",
            got=f"{latency.num_hidden_layers} layers",
            expected=layers,
            fix="measure it with firp tune --json",
        )


def identity(request: CalibrationRequest, prepared: Prepared) -> dict[str, Any]:
    """What a run must share with an unfinished one to go on with it. Sizes of a step may change:
    lower ones help out of a crash.
    """
    options = {
        name: value for name, value in asdict(request.options).items() if name not in RESUMABLE_CHANGES
    }
    data = hashlib.sha256(json.dumps([prepared.documents, prepared.prompts]).encode()).hexdigest()
    latency = asdict(request.latency) if request.latency else None
    return {"model": fingerprint(prepared.checkpoint), "data": data, "latency": latency, **options}
