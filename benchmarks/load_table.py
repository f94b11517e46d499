"""The tables of `load.py`, from the lines of all its runs.

In: lines as `load.py` writes them. Out: tables and notes in a `Result`.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from peer_table import DRAFTED, NONE
from table import Result

Line = dict[str, Any]
NOTES = (
    "A step without drafts is the same pass, drafted or plain. "
    "A client asks for its next answer when the last one is whole. tokens/s and the rest are end to end, "
    "prompts included. A drafted step brings several tokens at once: time is between steps.",
    "Each is configured for as many requests at once as there are clients at most: firp by max_batch, "
    "llama.cpp by n_seq_max with one cache for all, a worker that fills batches of 512 rows (its server in "
    "Python takes one request after the other); onnxruntime-genai by static batches, the only ones that its "
    "Engine has for CPUs. firp keeps no prefixes, and no lane holds a prompt before it is asked.",
)


def report(result: Result, lines: list[Line], tokens: list[int]) -> None:
    """Add the tables of these lines, how they were measured, and with which versions. tokens: new ones of
    each request.
    """
    runs = defaultdict(list)
    for line in lines:
        if line["what"] == "together":
            runs[line["name"], int(line["job"])].append(line)
    if runs:
        _together(result, runs, tokens)
    arrivals = defaultdict(list)
    for line in lines:
        if line["what"] == "arrival":
            arrivals[line["name"]].append(line)
    if arrivals:
        _arrivals(result, arrivals)
    for note in NOTES:
        result.note(note)
    for line in lines:
        if line["what"] == "difference":
            result.note(_difference(line))
    versions = (line["versions"] for found in runs.values() for line in found)
    result.note("Versions: " + "; ".join(dict.fromkeys(versions)) + ".")


def _together(result: Result, runs: dict[tuple[str, int], list[Line]], tokens: list[int]) -> None:
    turns = sorted({len(found) for found in runs.values()})
    fewest = min(clients for _, clients in runs)
    table = result.table(
        f"{len(tokens)} requests of {min(tokens)} to {max(tokens)} new tokens, "
        f"median of {' to '.join(map(str, turns))} turns (lowest, highest)",
        "",
        "clients",
        "tokens/s",
        "over plain, same turn",
        "steps; of a request's, those with drafts",
        f"over clients = {fewest}",
        "ms between tokens: p50, p99",
        "first token, ms: p50",
        f"same tokens as plain, clients = {fewest}",
    )
    order = list(dict.fromkeys(name for name, _ in runs))
    for name, clients in sorted(runs, key=lambda key: (order.index(key[0]), key[1])):
        found = runs[name, clients]
        one = runs.get((name, fewest), [])
        plain = runs.get((name.removesuffix(DRAFTED), clients), []) if name.endswith(DRAFTED) else []
        by_turn = {line["turn"]: rate(line) for line in plain}
        over = [rate(line) / by_turn[line["turn"]] for line in found if line["turn"] in by_turn]
        gaps = [gap for line in found for gap in gaps_of(line)]
        firsts = [
            times[0] - asked
            for line in found
            for times, asked in zip(line["seconds"], line["asked"], strict=True)
        ]
        table.add(
            name,
            clients,
            spread([rate(line) for line in found], ".0f"),
            spread(over, ".2f") if over else NONE,
            _steps(found),
            f"{np.median([rate(line) for line in found]) / np.median([rate(line) for line in one]):.2f}"
            if one
            else NONE,
            ", ".join(f"{1e3 * value:.0f}" for value in np.percentile(gaps, (50, 99))),
            f"{1e3 * np.median(firsts):,.0f}",
            _same(found, runs.get((name.removesuffix(DRAFTED), fewest), [])),
        )


def _steps(found: list[Line]) -> str:
    """Of one turn on average, as firp counts them."""
    if "counts" not in found[0]:
        return NONE
    counts = {name: sum(line["counts"][name] for line in found) for name in found[0]["counts"]}
    tokens = sum(len(ids) for line in found for ids in line["token_ids"])
    share = counts["drafted"] / (tokens - counts["accepted"])
    return f"{counts['steps'] / len(found):.0f}; {share:.0%}"


def _same(found: list[Line], one: list[Line]) -> str:
    if not one:
        return NONE
    pairs = [pair for line in found for pair in zip(line["token_ids"], one[0]["token_ids"], strict=True)]
    return f"{sum(ours == first for ours, first in pairs)} of {len(pairs)}"


def _arrivals(result: Result, arrivals: dict[str, list[Line]]) -> None:
    turns = sorted({len(found) for found in arrivals.values()})
    table = result.table(
        f"A long prompt arrives while others decode, plain; {' to '.join(map(str, turns))} turns",
        "",
        "others",
        "tokens of the prompt",
        "ms between tokens before and after, p50",
        "while it is computed, p50",
        "p99",
        "longest",
        "in plain steps: p50, p90, p99, longest",
    )
    for name, found in arrivals.items():
        around = [np.median([gap for line in found for gap in line[when]]) for when in ("before", "after")]
        during = [gap for line in found for _, gap in line["during"]]
        steps = np.concatenate([_plain_steps(line) for line in found])
        table.add(
            name,
            found[-1]["running"],
            found[-1]["prompt_tokens"],
            ", ".join(f"{1e3 * value:.0f}" for value in around),
            *(f"{1e3 * value:.0f}" for value in np.percentile(during, (50, 99, 100))),
            ", ".join(f"{value:.1f}" for value in np.percentile(steps, (50, 90, 99, 100))),
        )
    result.note(
        "A plain step takes as long as before the prompt at its begin, as long as after it at its end, and "
        "between them in proportion: the texts of the others grow."
    )


def _plain_steps(line: Line) -> np.ndarray:
    """How many plain steps each gap took while the prompt was computed."""
    before, after = np.median(line["before"]), np.median(line["after"])
    share, gap = np.array(line["during"]).T
    return gap / (before + share * (after - before))


def _difference(line: Line) -> str:
    clients, _, number = line["job"].partition(":")
    where = f"{line['name']}, {clients} clients, turn {line['turn'] + 1}, prompt {number}"
    if line["position"] is None:
        return f"{where}: the tokens of the prompt alone; it was the first run that was others."
    tie = "a near tie" if line["near_tie"] else "no near tie"
    return (
        f"{where}: leaves its own text alone at token {line['position']}, margin {line['margin']:.1e}: {tie}."
    )


def rate(line: Line) -> float:
    """Tokens a second, of all clients together, from the first question to the last token."""
    return sum(map(len, line["token_ids"])) / max(times[-1] for times in line["seconds"])


def gaps_of(line: Line) -> list[float]:
    """Seconds between the steps of each request."""
    return [gap for times in line["seconds"] for gap in np.diff(np.unique(times))]


def spread(values: list[float], shown: str) -> str:
    """Median, and the lowest and highest."""
    return f"{np.median(values):{shown}} ({min(values):{shown}}, {max(values):{shown}})"
