"""Trains FIRP predictors on a frozen model, and measures them on held-out text.

In: a model directory and text files. Out: a predictor directory (firp.export.predictor_dir).
Loss: KL divergence from the model's own next-token distribution at token i + j to that of pseudo row j of anchor i, summed
over j, averaged over anchors (method.md, "Training the predictors").
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from firp.calib.dataset import Dataset, load_dataset
from firp.calib.frozen_model import FrozenModel, RealRows
from firp.calib.options import TrainOptions
from firp.export import weights
from firp.export.checkpoint import Checkpoint, open_checkpoint
from firp.export.predictor_dir import FORMAT_VERSION, TENSOR_NAME, Accuracy, PredictorInfo
from firp.export.target_folder import check_target, disk_errors, target_folder
from firp.runtime.errors import CheckpointError, FirpError
from firp.runtime.text import load_tokenizer

MARKER = "predictors.json"


class TrainProgress(NamedTuple):
    done: float  # 0 to 1
    step: int
    loss: list[float]  # [K] nats, a running mean for each offset


class Predictors(nn.Module):
    """K linear maps [D, D], from identity."""

    def __init__(self, num_predictors: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(hidden_size).repeat(num_predictors, 1, 1))  # [K, D, D]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> pseudo hidden states [..., K, D]."""
        return torch.einsum("kij,...j->...ki", self.weight, hidden)


def calibrate(
    model_dir: Path,
    output: Path,
    data: list[Path],
    options: TrainOptions | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> PredictorInfo:
    """Train predictors for a model and write them to a new directory. Raises FirpError: bad model, data, options or target."""
    options = options or TrainOptions()
    check_target(output, MARKER, force=False)
    checkpoint = open_checkpoint(model_dir)
    layer = _check_options(options, checkpoint)
    tokenizer_file = model_dir / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise CheckpointError("the model has no tokenizer", got=f"'{model_dir}' without tokenizer.json", fix="add it")
    separator = checkpoint.eos_token_ids[0] if checkpoint.eos_token_ids else None
    window = min(options.window, checkpoint.config.max_position_embeddings)
    dataset = load_dataset(data, load_tokenizer(tokenizer_file), window, separator)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    frozen = FrozenModel(model, layer, checkpoint.config.sliding_window)
    with target_folder(output, MARKER) as folder:
        predictors, steps, minutes = train(frozen, dataset, options, progress)
        accuracy = measure(frozen, predictors, dataset.held_out)
        info = PredictorInfo(
            format_version=FORMAT_VERSION,
            method="firp",
            num_predictors=options.num_predictors,
            prediction_layer=layer,
            hidden_size=checkpoint.config.hidden_size,
            model_name=model_dir.resolve().name,
            model_fingerprint=checkpoint.fingerprint(),
            training={
                "data": [file.name for file in data[:10]], "files": len(data), "tokens": dataset.tokens, "steps": steps,
                "minutes": round(minutes, 2), **{k: v for k, v in asdict(options).items() if k not in ("steps", "minutes")},
            },
            held_out=accuracy,
        )  # fmt: skip
        output_tensor = weights.from_array(TENSOR_NAME, predictors.weight.detach().numpy())
        with disk_errors(output):
            weights.write_safetensors(folder / "predictors.safetensors", [output_tensor], "float32")
            (folder / MARKER).write_text(json.dumps(asdict(info), indent=1) + "\n", "utf-8")
    return info


def _check_options(options: TrainOptions, checkpoint: Checkpoint) -> int:
    layer = checkpoint.prediction_layer(options.prediction_layer)
    if not 1 <= options.num_predictors <= 16:
        raise FirpError("bad number of predictors", got=options.num_predictors, expected="1 to 16")
    amount = options.minutes or 0 if options.steps is None else options.steps
    if not 0 < amount < math.inf:
        raise FirpError("nothing to train", got=f"{options.minutes} minutes, {options.steps} steps", expected="more than 0")
    return layer


def train(
    frozen: FrozenModel, dataset: Dataset, options: TrainOptions, progress: Callable[[TrainProgress], None] | None = None
) -> tuple[Predictors, int, float]:
    """Trained predictors, the steps taken and the minutes they took. The same seed and `steps` give the same predictors."""
    generator = torch.Generator().manual_seed(options.seed)
    predictors = Predictors(options.num_predictors, frozen.model.config.hidden_size)
    optimizer = torch.optim.AdamW(predictors.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    windows = torch.from_numpy(dataset.training)
    order, step, started = torch.empty(0, dtype=torch.int64), 0, time.monotonic()
    running = torch.zeros(options.num_predictors)
    while True:
        minutes = (time.monotonic() - started) / 60
        done = step / options.steps if options.steps else minutes / options.minutes
        if done >= 1:
            return predictors, step, minutes
        optimizer.param_groups[0]["lr"] = options.learning_rate * min(1, done * 20) * 0.5 * (1 + math.cos(math.pi * done))
        if len(order) < options.batch:
            order = torch.cat([order, torch.randperm(len(windows), generator=generator)])
        chosen, order = order[: options.batch], order[options.batch :]
        losses = _losses(frozen, predictors, windows[chosen], options.anchors, generator)
        if not torch.isfinite(losses).all():
            raise FirpError(
                "training diverged", got=f"loss {losses.tolist()} at step {step}", fix="use cleaner data or another seed"
            )
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        nn.utils.clip_grad_norm_(predictors.parameters(), 1.0)
        optimizer.step()
        step += 1
        running = losses.detach() if step == 1 else running.lerp(losses.detach(), 0.05)
        if progress:
            progress(TrainProgress(done, step, running.tolist()))


def _losses(frozen: FrozenModel, predictors: Predictors, input_ids: Tensor, anchors: int, generator: torch.Generator) -> Tensor:
    """Mean KL divergence in nats for each offset, [K]."""
    k = predictors.weight.shape[0]
    real = frozen.real_rows(input_ids)
    chosen = _sample_anchors(input_ids, anchors, k, generator)
    student = F.log_softmax(_guess(frozen, predictors, real, chosen), -1)  # [B, A, K, V]
    with torch.no_grad():
        teacher = F.log_softmax(frozen.logits(_gather(real.final, _targets(chosen, k))), -1)
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1).mean((0, 1))


def _guess(frozen: FrozenModel, predictors: Predictors, real: RealRows, anchors: Tensor) -> Tensor:
    """Logits [B, A, K, V] of the pseudo rows of anchors [B, A]."""
    hidden = _gather(real.hidden, anchors[:, :, None])[:, :, 0]  # [B, A, D]
    return frozen.logits(frozen.pseudo_rows(predictors(hidden), real, anchors))


def _sample_anchors(input_ids: Tensor, count: int, k: int, generator: torch.Generator) -> Tensor:
    """Positions [B, A] without repetition, each with k real rows after it."""
    batch, length = input_ids.shape
    scores = torch.rand(batch, length - k, generator=generator)
    return scores.topk(min(count, length - k), dim=1).indices.sort(1).values


def _targets(anchors: Tensor, k: int) -> Tensor:
    """The real rows [B, A, K] whose distribution pseudo row j is to match: anchor + j."""
    return anchors[:, :, None] + torch.arange(1, k + 1)


def _gather(rows: Tensor, positions: Tensor) -> Tensor:
    """rows [B, S, D] at positions [B, A, K] -> [B, A, K, D]."""
    batch = torch.arange(len(rows))[:, None, None]
    return rows[batch, positions]


@torch.no_grad()
def measure(frozen: FrozenModel, predictors: Predictors, windows: Any, anchors: int = 64) -> Accuracy:
    """Top-1 and top-5 accuracy for each offset against the model's own greedy tokens, teacher-forced on held-out windows."""
    generator, k = torch.Generator().manual_seed(0), predictors.weight.shape[0]
    hits, total = torch.zeros(2, k), 0
    for window in torch.from_numpy(windows)[:200].split(8):
        real = frozen.real_rows(window)
        chosen = _sample_anchors(window, anchors, k, generator)
        target = frozen.logits(_gather(real.final, _targets(chosen, k))).argmax(-1)  # [B, A, K]
        guessed = _guess(frozen, predictors, real, chosen).topk(5, -1).indices == target[..., None]
        hits += torch.stack([guessed[..., 0].sum((0, 1)), guessed.any(-1).sum((0, 1))])
        total += chosen.numel()
    top1, top5 = (tuple(round(share, 4) for share in row) for row in (hits / total).tolist())
    return Accuracy(top1, top5, total)
