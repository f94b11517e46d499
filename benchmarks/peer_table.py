"""The tables of `peers.py`, from the lines of all its runs.

In: lines as `peers.py` writes them. Out: tables in a `Result`.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from peer_jobs import PLACES
from table import Result

Line = dict[str, Any]
REFERENCE = "transformers float32"
FIRST_TOKEN = {500: 512, 2000: 2048}  # prompt tokens, and the context in PLACES whose prompt has them
DRAFTED = ", drafted"
NONE = "–"


def report(result: Result, lines: list[Line], weights: Mapping[str, int]) -> None:
    """Add the tables of these lines, and the versions that they were measured with. weights: bytes that
    one token reads, by peer.
    """
    by = defaultdict(lambda: defaultdict(list))
    for line in lines:
        by[line["what"]][line["name"]].append(line)
    if by["turn"]:
        _summary(result, by)
        _kinds(result, by["turn"])
        _gains(result, by["turn"])
    if by["bandwidth"]:
        _limits(result, by, weights)
    loads = (load for name in by["load"].values() for load in name)
    result.note("Versions: " + "; ".join(dict.fromkeys(load["versions"] for load in loads)) + ".")


def _limits(result: Result, by: dict[str, dict[str, list[Line]]], weights: Mapping[str, int]) -> None:
    """How near reading all weights once a token comes to what memory gives."""
    speeds = [line["gb_per_s"] for line in by["bandwidth"]["read"]]
    table = result.table(
        f"Plain decoding beside the speed of memory: {min(speeds):.0f} to {max(speeds):.0f} GB/s were read "
        "before and after",
        "",
        "MB of weights a token",
        "tokens/s if they took all the time",
        "share reached",
    )
    for name, size in weights.items():
        if turns := by["turn"].get(name):
            most = statistics.mean(speeds) * 1e9 / size
            reached = statistics.median(map(rate, prompts_of(turns)))
            table.add(name, f"{size / 1e6:,.0f}", f"{most:.0f}", f"{reached / most:.0%}")


def _summary(result: Result, by: dict[str, dict[str, list[Line]]]) -> None:
    first = next(iter(by["turn"].values()))
    generated = {len(line["seconds"]) for line in first if line["context"] is None}
    table = result.table(
        f"Greedy decoding, {', '.join(map(str, sorted(generated)))} tokens a prompt, first token not counted "
        "(median, quartiles)",
        "",
        "tokens/s",
        f"same tokens as {REFERENCE}",
        *(f"ms a token at {context:,}" for context in PLACES),
        *(f"first token after {prompt:,}, ms" for prompt in FIRST_TOKEN),
        "load, s",
        "MiB loaded, and after 16 tokens",
        "perplexity",
    )
    expected = {(line["job"], line["turn"]): line["token_ids"] for line in by["turn"].get(REFERENCE, [])}
    for name, turns in by["turn"].items():
        places = {
            context: [line for line in turns if line["context"] == context and len(line["seconds"]) > 1]
            for context in PLACES
        }
        loads = by["load"][name]
        table.add(
            name,
            spread(map(rate, prompts_of(turns)), ".1f"),
            _same(turns, expected),
            *(spread((1e3 / rate(line) for line in places[context]), ".1f") for context in PLACES),
            *(
                spread((1e3 * line["seconds"][0] for line in places[context]), ",.0f")
                for context in FIRST_TOKEN.values()
            ),
            spread((load["load_s"] for load in loads), ".2f"),
            ", ".join(f"{np.median([load[key] for load in loads]):,.0f}" for key in ("mib", "used_mib")),
            _perplexity(by["score"].get(name)),
        )


def _kinds(result: Result, turns: dict[str, list[Line]]) -> None:
    kinds = sorted({kind_of(line) for name in turns.values() for line in prompts_of(name)})
    if len(kinds) < 2:
        return
    table = result.table("Tokens a second by kind of prompt (median)", "", *kinds)
    for name, lines in turns.items():
        rates = defaultdict(list)
        for line in prompts_of(lines):
            rates[kind_of(line)].append(rate(line))
        table.add(name, *(f"{np.median(rates[kind]):.1f}" if rates[kind] else NONE for kind in kinds))


def _gains(result: Result, turns: dict[str, list[Line]]) -> None:
    """Drafted over plain, the same prompts in the same turn; and of all their tokens together, by the time
    that they took.
    """
    drafted = [name for name in turns if name.endswith(DRAFTED)]
    if not drafted:
        return
    kinds = sorted({kind_of(line) for name in drafted for line in prompts_of(turns[name])})
    table = result.table(
        "Drafted over plain, pairs of one prompt in one turn (median, quartiles)",
        "",
        "all tokens by all their time",
        "all",
        *kinds,
    )
    for name in drafted:
        plain = {(line["job"], line["turn"]): line for line in prompts_of(turns[name.removesuffix(DRAFTED)])}
        pairs = [
            (line, plain[line["job"], line["turn"]])
            for line in prompts_of(turns[name])
            if (line["job"], line["turn"]) in plain
        ]
        gains = defaultdict(list)
        for line, other in pairs:
            gains[kind_of(line)].append(rate(line) / rate(other))
        everything = [gain for kind in gains.values() for gain in kind]
        together = [sum(decoding(line) for line in side) for side in zip(*pairs, strict=True)]
        shown = f"{together[1] / together[0]:.2f}" if pairs else NONE
        groups = (everything, *(gains[kind] for kind in kinds))
        table.add(name, shown, *(spread(group, ".2f") for group in groups))


def prompts_of(lines: list[Line]) -> list[Line]:
    """Generations after prompts, not those about a context."""
    return [line for line in lines if line["context"] is None and len(line["seconds"]) > 1]


def kind_of(line: Line) -> str:
    return line["job"].partition(":")[0]


def rate(line: Line) -> float:
    """Tokens a second of decoding, the first token not counted."""
    return (len(line["seconds"]) - 1) / decoding(line)


def decoding(line: Line) -> float:
    """Seconds from the first token to the last."""
    return line["seconds"][-1] - line["seconds"][0]


def spread(values: Iterable[float], shown: str) -> str:
    """Median and quartiles."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return NONE
    low, middle, high = np.percentile(known, (25, 50, 75))
    return f"{middle:{shown}} ({low:{shown}}, {high:{shown}})"


def _same(turns: list[Line], expected: dict[tuple[str, int], list[int]]) -> str:
    pairs = [
        (line["token_ids"], expected[key])
        for line in turns
        if (key := (line["job"], line["turn"])) in expected
    ]
    return f"{sum(ours == theirs for ours, theirs in pairs)} of {len(pairs)}" if pairs else NONE


def _perplexity(scores: list[Line] | None) -> str:
    return f"{math.exp(scores[-1]['nats'] / scores[-1]['tokens']):.3f}" if scores else NONE
