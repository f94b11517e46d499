"""The `chat` command: a conversation in the terminal, or with every line of a pipe."""

import click

from firp.runtime.backends.registry import BACKENDS
from firp.runtime.commands.asked import answer_options, template_option
from firp.runtime.commands.shown import tuning_remark
from firp.runtime.commands.talk import Talk
from firp.runtime.console.interrupts import end_on_terminate
from firp.runtime.console.line_input import LineInput
from firp.runtime.console.options import PATH, backend_option
from firp.runtime.console.progress import messages
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--system", help="The system message.")
@template_option
@answer_options
@click.option("--stop", multiple=True, help="End an answer before this text.")
@click.option("--plain", is_flag=True, help="One token a pass, no drafts.")
@click.option("--session", type=PATH, help="Go on from this file, and write it at the end.")
@click.option("--show-drafts", is_flag=True, help="Mark which tokens came from one step.")
@backend_option(BACKENDS)
def chat(bundle, system, chat_template_kwargs, stop, plain, session, show_drafts, backend, **sampling):
    """Talk with BUNDLE in the terminal; what was said stays in its cache.

    Ctrl-C ends an answer, /exit the conversation; /help says more. From a pipe every line is a
    turn.
    """
    if plain and show_drafts:
        raise click.UsageError("--plain and --show-drafts exclude each other.")
    params = SamplingParams(**sampling, stop=tuple(stop))
    engine = Engine.load(bundle, backend)
    saved = session if session and session.exists() else None
    conversation = engine.conversation(
        params, system, plain, chat_template_kwargs=chat_template_kwargs, saved=saved
    )
    if not plain and (remark := tuning_remark(engine)):
        messages.print(remark)
    with end_on_terminate():
        try:
            Talk(conversation, engine.context, LineInput(), show_drafts).run()
        finally:
            if session:
                conversation.save(session)
