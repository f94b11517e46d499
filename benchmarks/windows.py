"""A pass of a model with windows beside a long text, by the graphs for TensorRT on ONNX Runtime: layers
with a window read all cached slots, whose mask hides most of them, or the last ones alone.

    python benchmarks/windows.py [--cached 8192] [--layers 12]

The model has random weights in the shape of Gemma 3 270M: a window of 512 tokens in five of six layers,
a vocabulary of 32,000. One graph takes both, for its windowed layers take any number of slots; runs take
turns, and what comes out is compared.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
from random_model import make_checkpoint
from table import Result

from firp.calib.targets.cost import Point
from firp.calib.targets.feeds import FeedMaker
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.runtime.backends.host import attention_bias
from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from firp.runtime.bundle.format import Bundle, load_bundle
from firp.runtime.bundle.graph_spec import PREFIX, GraphSpec

WINDOW = 512
SHAPE = {
    "model_type": "gemma3_text",
    "vocab_size": 32000,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FORMS = ("all slots", "last slots")
ROWS = (1, 16)
WARM_UP, TURNS = 2, 9

Feed = dict[str, np.ndarray]


def of_all_slots(spec: GraphSpec, feed: Feed, cached: int) -> Feed:
    """The same pass where windowed layers get all cached slots: noise before those that they see."""
    rng = np.random.default_rng(1)
    changed = {}
    for tensor in spec.past:
        last = feed[tensor.name]
        if tensor.shape[0] == "W":
            before = rng.standard_normal((cached - len(last), *last.shape[1:]), np.float32) * 0.1
            changed[tensor.name] = np.concatenate([before, last])
    rows = feed["attention_bias_window"].shape[2]
    bias = np.empty((rows, cached + rows), np.float32)
    positions = np.arange(cached, cached + rows)
    attention_bias(np.tri(rows, dtype=bool), positions, cached, cached, WINDOW, bias)
    return feed | changed | {"attention_bias_window": bias[None, None]}


def run_both(bundle: Bundle, cached: int, rows: int) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of both halves by form, turn by turn, and the largest difference of what comes out."""
    times: dict[str, list[float]] = {form: [0.0] * TURNS for form in FORMS}
    worst = 0.0
    for name in ("lower", "upper"):
        spec = bundle.manifest.graphs_for(PREFIX)[name]
        feed = FeedMaker(spec, bundle.manifest, 1, cached).feed(Point(rows, cached, 1))
        feeds = dict(zip(FORMS, (of_all_slots(spec, feed, cached), feed), strict=True))
        options, providers = OnnxRuntimeBackend().options(), ["CPUExecutionProvider"]
        session = ort.InferenceSession(bundle.graph_path(spec), options, providers=providers)
        outputs = [spec.outputs[0].name, *(tensor.name for tensor in spec.new)]  # hidden states, or logits
        for turn in range(-WARM_UP, TURNS):
            found = []
            for form in FORMS:
                start = time.perf_counter()
                found.append(session.run(outputs, feeds[form]))
                if turn >= 0:
                    times[form][turn] += (time.perf_counter() - start) * 1e3
            worst = max(worst, *(float(np.abs(a - b).max()) for a, b in zip(*found, strict=True)))
    return times, worst


@click.command()
@click.option("--cached", default=8192, show_default=True, help="Tokens before the pass.")
@click.option("--layers", default=12, show_default=True)
def main(cached, layers):
    result = Result("windows", "Layers with a window read their last slots")
    seen = sum(layer % 6 < 5 for layer in range(layers))
    caption = f"A pass after {cached} tokens, ms, a window of {WINDOW} in {seen} of {layers} layers"
    table = result.table(caption, "rows", *FORMS, "ratio", "quartiles of both", "largest difference")
    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder) / "model", Path(folder) / "bundle"
        shape = SHAPE | {"num_hidden_layers": layers, "max_position_embeddings": cached + max(ROWS)}
        make_checkpoint(model, shape, "float32")
        export_bundle(ExportOptions(model, path))
        bundle = load_bundle(path)
        for rows in ROWS:
            times, worst = run_both(bundle, cached, rows)
            every, last = (statistics.median(times[form]) for form in FORMS)
            quartiles = (statistics.quantiles(times[form], n=4) for form in FORMS)
            spread = ", ".join(f"{low:.1f} to {high:.1f}" for low, _, high in quartiles)
            table.add(rows, f"{every:.1f}", f"{last:.1f}", f"{last / every:.2f}", spread, f"{worst:.0e}")
    result.write()


if __name__ == "__main__":
    main()
