"""Requests of a soak: prompts and params of every kind, conversations, and what each gets alone.

In: an engine, a generator. Out: `Drawn` requests and `Script`s, each with what it must say.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.structured import StructuredOutput
from firp.runtime.tuning.parity import plain_run

LENGTHS = (1, 3, 9, 30, 90)  # of prompts, in tokens
LONGEST = 1500  # of those few that are long
_STOPS = ((), (), (), ("\n",), ("e", "):"), ("self", "return"), ("no such text",))
_GRAMMARS = (
    StructuredOutput(regex="[a-z]{1,12}(_[a-z]{1,8}){0,3}"),
    StructuredOutput(regex=r"[0-9]{2,4}-[0-9]{2}"),
    StructuredOutput(choice=("return None", "raise ValueError", "pass")),
    StructuredOutput(
        json_schema={
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer"}},
            "required": ["ok"],
            "additionalProperties": False,
        }
    ),
)
_SAID = ("def add(a, b):", "sort a list", "import os", "x = [1, 2, 3]", "class A:", "while True:")


class Alone(NamedTuple):
    """What a request gets when it is alone, plainly."""

    tokens: list[int]
    text: str
    reason: str
    margins: list[float]  # of each token's pick


class Drawn(NamedTuple):
    """A request, and what each of its samples must say."""

    prompt: list[int]
    params: SamplingParams
    samples: list[Alone]


class Script(NamedTuple):
    """What a user says, turn by turn, and the answers."""

    params: SamplingParams
    turns: list[str]
    answers: list[str]


def draw_requests(engine: Engine, rng: random.Random, count: int, most_tokens: int) -> list[Drawn]:
    """Requests; some prompts begin alike, some are long."""
    system = _tokens(engine, rng, 130)
    drawn = []
    for seed in range(count):
        prompt = _tokens(engine, rng, rng.choice(LENGTHS))
        if rng.random() < 0.3:
            prompt = system[: rng.randrange(1, 130)] + prompt
        elif rng.random() < 0.05:
            prompt = _tokens(
                engine, rng, rng.randrange(LONGEST // 3, min(LONGEST, engine.context - most_tokens))
            )
        params = _params(engine, rng, most_tokens, 1000 * seed)
        samples = rng.choice((1, 1, 1, 1, 1, 1, 2, 3))
        params_of = [replace(params, seed=params.seed + place) for place in range(samples)]
        drawn.append(Drawn(prompt, params, [alone(engine, prompt, each) for each in params_of]))
    return drawn


def alone(engine: Engine, prompt: list[int], params: SamplingParams) -> Alone:
    """Decode one request plainly, in a session of its own for the tokens, by the engine for its end."""
    run = plain_run(engine, prompt, params)
    found = engine.generate(prompt, params, plain=True)
    if run.tokens[: len(found.token_ids)] != found.token_ids:
        raise AssertionError(f"an engine's only request is not what its session says: {prompt}, {params}")
    return Alone(found.token_ids, found.text, found.finish_reason, run.margins)


def _tokens(engine: Engine, rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, engine.model.vocab_size) for _ in range(count)]


def _params(engine: Engine, rng: random.Random, most_tokens: int, seed: int) -> SamplingParams:
    most = rng.randrange(1, most_tokens)
    structured = rng.choice(_GRAMMARS) if rng.random() < 0.15 else None
    biases = {token: rng.uniform(-8, 8) for token in _tokens(engine, rng, 6)}
    allowed = tuple(_tokens(engine, rng, 200))
    return SamplingParams(
        max_new_tokens=most,
        temperature=rng.choice([0, 0, 0.7, 1.2]),
        top_k=rng.choice([0, 0, 20]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.0, 0.4, -0.3]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
        logit_bias=biases if rng.random() < 0.15 else (),
        allowed_token_ids=allowed if rng.random() < 0.1 and not structured else None,
        banned_token_ids=tuple(_tokens(engine, rng, 40)) if rng.random() < 0.1 and not structured else (),
        min_tokens=rng.randrange(0, most) if rng.random() < 0.15 and not structured else 0,
        stop=rng.choice(_STOPS),
        stop_token_ids=tuple(_tokens(engine, rng, 30)) if rng.random() < 0.15 else (),
        logprobs=rng.choice([None, None, 2]),
        ignore_eos=rng.random() < 0.5,
        structured=structured,
        seed=seed,
    )


def draw_scripts(engine: Engine, rng: random.Random, count: int) -> list[Script]:
    """Conversations of two to four turns, each answered alone."""
    scripts = []
    for seed in range(count):
        params = SamplingParams(rng.randrange(4, 16), temperature=rng.choice([0, 0.8]), seed=seed)
        turns = [rng.choice(_SAID) for _ in range(rng.randrange(2, 5))]
        talk = engine.conversation(params, plain=True)
        answers = ["".join(chunk.text or "" for chunk in talk.send(turn)) for turn in turns]
        scripts.append(Script(params, turns, answers))
    return scripts


def follow(engine: Engine, script: Script, file: Path) -> bool:
    """Have a conversation; before its last turn it is saved, and goes on from the file. Whether every
    answer is the expected one.
    """
    talk = engine.conversation(script.params)
    answers = []
    for turn in script.turns:
        if len(answers) == len(script.turns) - 1:
            talk.save(file)
            talk = engine.conversation(script.params, saved=file)
            file.unlink()
        answers.append("".join(chunk.text or "" for chunk in talk.send(turn)))
    return answers == script.answers
