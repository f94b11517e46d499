"""The `generate` command: prompts in; text as it is decoded, or one JSON object a prompt, out."""

import itertools
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from firp.runtime.backends.registry import BACKENDS
from firp.runtime.commands.asked import (
    sampling_options,
    structured_options,
    structured_output,
    template_option,
    token_options,
)
from firp.runtime.commands.shown import tuning_remark
from firp.runtime.console.interrupts import cancel_on_interrupt
from firp.runtime.console.options import PATH, Repeating, backend_option, json_option
from firp.runtime.console.progress import messages
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.loop.generation import Chunk, Generation, collect
from firp.runtime.prompts import Prompt, read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.handle import Handle

AHEAD = 16  # prompts that decode together, or wait for it


@click.command(cls=Repeating)
@click.argument("bundle", type=PATH)
@click.option("--prompt", multiple=True, help="Texts to continue.")
@click.option(
    "--prompts",
    type=PATH,
    help="File with one JSON object a line: prompt, input_ids or messages, optional id.",
)
@click.option("--chat", is_flag=True, help="Every text is what a user says, through the chat template.")
@template_option
@sampling_options
@token_options
@click.option("--stop", multiple=True, help="End before any of these texts.")
@structured_options
@click.option(
    "--logprobs", type=int, metavar="N", help="With --json: logprobs of every token and of the N best."
)
@click.option("-n", "samples", type=click.IntRange(1), default=1, help="Answers a prompt; seeds count on.")
@click.option("--plain", is_flag=True, help="One token a pass, no drafts.")
@click.option("--stats", is_flag=True, help="What the engine did, as JSON, to stderr at the end.")
@backend_option(BACKENDS)
@json_option("Print one JSON object a prompt.")
def generate(
    bundle,
    prompt,
    prompts,
    chat,
    chat_template_kwargs,
    stop,
    json_schema,
    regex,
    grammar,
    choice,
    logprobs,
    samples,
    plain,
    stats,
    backend,
    as_json,
    **sampling,
):
    """Continue prompts from BUNDLE; drafted decoding gives the same tokens as plain decoding, in
    fewer passes.
    """
    if bool(prompt) == (prompts is not None):
        raise click.UsageError("give either --prompt or --prompts.")
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs goes with --json.")
    structured = structured_output(json_schema, regex, grammar, choice)
    params = SamplingParams(**sampling, stop=stop, logprobs=logprobs, structured=structured)
    requests = (
        read_prompts(prompts) if prompts else [Prompt(str(i), text) for i, text in enumerate(prompt, 1)]
    )
    requests = [request.as_chat() for request in requests] if chat else requests
    if chat_template_kwargs and not any(request.messages for request in requests):
        raise click.UsageError("--chat-template-kwargs goes with --chat, or with messages.")
    requests = [request.with_variables(chat_template_kwargs) for request in requests]
    engine = Engine.load(bundle, backend)
    if not plain and (remark := tuning_remark(engine)):
        messages.print(remark)
    for request in requests:
        engine.request(request.content, params)  # all are checked before the first is decoded
    with cancel_on_interrupt() as cancel:
        every = [(request, params.sample(place)) for request in requests for place in range(samples)]
        for request, handle in _ahead(engine, every, plain=plain, cancel=cancel):
            if len(every) > 1 and not as_json:
                messages.print(f"[{request.id}]", style="bold")
            result = collect(handle) if as_json else collect(handle, _show)
            if as_json:
                print(json.dumps(_to_json(request.id, result)), flush=True)
            else:
                print()
                messages.print(_summary(result), style="dim")
            if cancel.is_set():
                raise FirpError(
                    "interrupted", got=f"{result.stats.decoded_tokens} tokens of prompt {request.id}"
                )
    if stats:
        click.echo(json.dumps(asdict(engine.stats())), err=True)


def _ahead(
    engine: Engine, requests: list[tuple[Prompt, SamplingParams]], **options
) -> Iterator[tuple[Prompt, Handle]]:
    """Requests in their order, with some that decode already while the first is shown."""
    rest, begun = iter(requests), deque()
    while True:
        for request, params in itertools.islice(rest, AHEAD - len(begun)):
            begun.append((request, engine.submit(request.content, params, **options)))
        if not begun:
            return
        yield begun.popleft()


def _show(chunk: Chunk) -> None:
    text = "".join(f"{token} " for token in chunk.token_ids) if chunk.text is None else chunk.text
    print(text, end="", flush=True)


def _summary(result: Generation) -> str:
    """One line about a finished request."""
    stats = result.stats
    steps = f"{stats.steps} steps, {stats.tokens_per_step:.2f} tokens/step"
    return (
        f"{len(result.token_ids)} tokens ({result.finish_reason}), {steps}, {stats.tokens_per_s:.0f} tokens/s"
    )


def _to_json(request_id: str, result: Generation) -> dict[str, Any]:
    found = {
        "id": request_id,
        "prompt_tokens": result.prompt_tokens,
        "token_ids": result.token_ids,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "steps": result.stats.steps,
        "tokens_per_step": result.stats.tokens_per_step,
    }
    if result.logprobs is not None:
        found["logprobs"] = [token._asdict() for token in result.logprobs]
    return found
