"""The tables of `family_speed.py`.

In: lines by model, as `family_speed.py` keeps them. Out: tables in a `Result`, and the same as JSON data.
"""

import statistics
from collections.abc import Iterable
from typing import Any

from peer_table import NONE, rate
from table import Result, Table

Line = dict[str, Any]
PEERS = {  # what a precision of firp is compared with
    "float32": ("onnxruntime-genai float32", "transformers float32"),
    "int8": ("onnxruntime-genai int8", "llama.cpp Q8_0"),
    "int4": ("onnxruntime-genai int4", "llama.cpp Q4_0"),
}


def report(result: Result, measured: dict[str, list[Line]]) -> list[dict[str, Any]]:
    """Add the tables of all models that were measured."""
    table = result.table(
        "Tokens a second after the first, one prompt, in turns (median, least and most of the turns)",
        *("model", "weights", "MB a token", "firp", "share of the bandwidth"),
        *("peer", "its tokens/s", "firp over the peer"),
    )
    found = []
    for model, lines in measured.items():
        if any(line["what"] == "turn" for line in lines):
            found.append({"model": model} | _model(table, model, lines))
    if any(each["rows"] for each in found):
        _rows(result, found)
    versions = (line["versions"] for lines in measured.values() for line in lines if line["what"] == "load")
    result.note("Versions: " + "; ".join(dict.fromkeys(versions)) + ".")
    result.note(
        "MB a token: weights that one token reads, of experts those that it chooses. Share: these bytes "
        "times tokens/s, over the speed at which as many threads read memory before and after: "
        + ", ".join(f"{each['model']} {each['gb_per_s']:.1f} GB/s" for each in found)
        + ". llama.cpp's weights have 8.5 and 4.5 bits. "
        "The experts of gpt-oss are float4 in its checkpoint, as on the hub, and become what is compared."
    )
    return found


def _model(table: Table, model: str, lines: list[Line]) -> dict[str, Any]:
    """Rows of one model, and what they say as JSON data."""
    rates: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["what"] == "turn":
            rates.setdefault(line["name"], {})[line["turn"]] = rate(line)
    absent = {line["name"]: line["why"] for line in lines if line["what"] == "absent"}
    size = {line["name"]: line["bytes"] for line in lines if line["what"] == "bytes"}
    gb_per_s = statistics.median(line["gb_per_s"] for line in lines if line["what"] == "bandwidth")
    for precision, peers in PEERS.items():
        name = f"firp {precision}"
        ours = rates.get(name, {})
        share = _median(ours) * size[name] / gb_per_s / 1e9 if ours else None
        for peer in peers:
            if peer not in rates and peer not in absent:
                continue
            theirs = rates.get(peer, {})
            ratios = [ours[turn] / theirs[turn] for turn in sorted(ours.keys() & theirs.keys())]
            table.add(
                model,
                precision,
                f"{size[name] / 1e6:,.0f}" if ours else NONE,
                _spread(ours.values(), ".1f") if ours else f"refused: {absent.get(name, 'not measured')}",
                f"{share:.0%}" if ours else NONE,
                peer,
                _spread(theirs.values(), ".1f") if theirs else f"refused: {absent.get(peer, 'not measured')}",
                _spread(ratios, ".2f"),
            )
    return {
        "gb_per_s": gb_per_s,
        "tokens_per_s": {name: list(turns.values()) for name, turns in rates.items()},
        "bytes_of_a_token": size,
        "absent": absent,
        "rows": {line["name"]: line["ms"] for line in lines if line["what"] == "rows"},
    }


def _rows(result: Result, found: list[dict[str, Any]]) -> None:
    """What passes of several rows cost."""
    counts = next(iter(next(each["rows"] for each in found if each["rows"]).values()))
    table = result.table(
        "A pass of several rows, ms, and over a pass of one (median of the turns)", "model", "", *counts
    )
    for each in found:
        for name, by_rows in each["rows"].items():
            times = {count: statistics.median(ms) for count, ms in by_rows.items()}
            one = times[next(iter(times))]
            table.add(each["model"], name, *(f"{ms:.1f} ({ms / one:.2f})" for ms in times.values()))
    result.note("Of a pass firp computes the logits of every row; llama.cpp was asked for those of the last.")


def _median(turns: dict[int, float]) -> float:
    return statistics.median(turns.values())


def _spread(values: Iterable[float], shown: str) -> str:
    """Median, least and most."""
    known = list(values)
    if not known:
        return NONE
    return f"{statistics.median(known):{shown}} ({min(known):{shown}}, {max(known):{shown}})"
