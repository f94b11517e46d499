"""The `triton` command: a bundle in, a model repository for Triton's Python backend out."""

from pathlib import Path

import click

from firp.runtime.backends.registry import BACKENDS
from firp.runtime.console.options import PATH, backend_option
from firp.runtime.console.progress import messages
from firp.runtime.serving.deploy.triton_repository import write_repository


@click.command()
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The model repository, new or not.")
@click.option("--name", help="Of the model in it; the bundle's folder's by default.")
@backend_option(BACKENDS)
def triton(bundle: Path, output: Path, name: str | None, backend: str) -> None:
    """Write a model for Triton's Python backend that streams from BUNDLE."""
    target = write_repository(bundle, output, bundle.resolve().name if name is None else name, backend)
    messages.print(f"wrote {target}; Triton's Python needs firp, and the bundle stays where it is")
