"""The `serve` command: a bundle behind HTTP, for OpenAI's clients and for browsers."""

import contextlib
import ipaddress
import logging
from pathlib import Path

import click

from firp.runtime.backends.registry import BACKENDS
from firp.runtime.commands.shown import tuning_remark
from firp.runtime.console.options import PATH, backend_option, options_from
from firp.runtime.console.progress import messages
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.serving.app import build_app
from firp.runtime.serving.metrics import Metrics
from firp.runtime.serving.observers import observers_of
from firp.runtime.serving.server import Certificate, Server, bind
from firp.runtime.serving.settings import ServerSettings, read_keys

_BATCH = {
    "max_batch": "Requests decoded together at most.",
    "max_queue": "Requests that wait at most; more get status 429.",
    "max_stall": "Plain steps that others wait for a token at most while a prompt is computed.",
}
_LIMITS = {
    "default_max_tokens": "Tokens of an answer at most, where a request does not say.",
    "max_body_bytes": "Of a request at most.",
    "max_requests": "Open requests at most; more get status 429.",
    "max_connections": "Open connections at most; more are closed at once.",
    "drain_s": "Seconds that running requests get after SIGTERM.",
}


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free."
)
@click.option(
    "--served-model-name", multiple=True, help="Names that clients may ask for; the folder's by default."
)
@click.option(
    "--api-key",
    envvar="FIRP_API_KEY",
    multiple=True,
    help="Keys of which clients must send one.  [env: FIRP_API_KEY]",
)
@click.option("--api-key-file", type=PATH, help="File with one such key a line.")
@options_from(EngineOptions(), _BATCH)
@click.option("--kv-bytes", type=int, help="Bytes of all caches at most; half of what is free by default.")
@click.option(
    "--prefix-bytes",
    type=int,
    help="Bytes of prefixes that requests share, besides; a quarter of what is free by default, and at "
    "most half of --kv-bytes. 0: none.",
)
@click.option("--max-tokens", type=int, help="Tokens that a request may ask for at most.")
@options_from(ServerSettings(), _LIMITS)
@click.option("--threads", type=int, help="Of each graph on the CPU; one a core by default.")
@backend_option(BACKENDS)
@click.option("--plain", is_flag=True, help="One token a pass, no drafts.")
@click.option("--ssl-certfile", type=PATH, help="Certificate chain, PEM: serve HTTPS.")
@click.option("--ssl-keyfile", type=PATH, help="Its private key, PEM.")
@click.option("--ssl-keyfile-password", envvar="FIRP_SSL_KEYFILE_PASSWORD", help="Of the private key.")
@click.option("--ssl-ca-certs", type=PATH, help="Certificates of those who sign clients' own, PEM.")
@click.option(
    "--ssl-cert-reqs",
    type=click.Choice(("none", "optional", "required")),
    default="none",
    show_default=True,
    help="Whether a client needs a certificate.",
)
@click.option("--ssl-ciphers", help="Of TLS 1.2, in OpenSSL's words.")
@click.option(
    "--ssl-minimum-version",
    type=click.Choice(("TLSv1.2", "TLSv1.3")),
    default="TLSv1.2",
    show_default=True,
    help="Of TLS.",
)
def serve(
    bundle, host, port, served_model_name, api_key, api_key_file, max_batch, max_queue, max_stall,
    kv_bytes, prefix_bytes, threads, backend, ssl_certfile, ssl_keyfile, ssl_keyfile_password,
    ssl_ca_certs, ssl_cert_reqs, ssl_ciphers, ssl_minimum_version, **limits,
):  # fmt: skip
    """Serve BUNDLE over HTTP: OpenAI's /v1/chat/completions and /v1/completions, /metrics, and a page
    to chat with at /.

    Ctrl-C or SIGTERM lets running requests end first.
    """
    keys = (*api_key, *(read_keys(api_key_file) if api_key_file else ()))
    options = EngineOptions(max_batch, max_queue, kv_bytes, prefix_bytes, max_stall)
    settings = ServerSettings(
        served_model_name=served_model_name, api_keys=keys, max_samples=max_queue, **limits
    )
    certificate = _certificate(
        ssl_certfile, ssl_keyfile, ssl_keyfile_password, ssl_ca_certs, ssl_cert_reqs, ssl_ciphers,
        ssl_minimum_version,
    )  # fmt: skip
    metrics = Metrics()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with (
        bind(host, port) as socket,
        Engine.load(bundle, backend, threads, options=options, observer=observers_of(metrics)) as engine,
    ):
        if not settings.plain and (remark := tuning_remark(engine)):
            _say(remark)
        if not keys and not _is_local(host):
            _say(f"no --api-key: whoever reaches {host} may use this server")
        scheme, (name, taken) = "https" if certificate else "http", socket.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name
        app = build_app(engine, settings, metrics)
        ready = f"{app.state.service.names[0]} at {scheme}://{shown}:{taken}; Ctrl-C ends it"
        Server(app, settings.drain_s, certificate, lambda: _say(ready)).run(sockets=[socket])


def _say(text: str) -> None:
    """Tell whoever started the server; one whose log has no room serves all the same."""
    with contextlib.suppress(OSError):
        messages.print(text)


def _certificate(certfile: Path | None, *more: Path | str | None) -> Certificate | None:
    if certfile is not None:
        return Certificate(certfile, *more)
    if more != (None, None, None, "none", None, "TLSv1.2"):
        raise FirpError("TLS options need --ssl-certfile", got="others without it")
    return None


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
