"""What a server is set to: names, keys, limits.

In: options of `firp serve`, or of a caller of `build_app`. Out: `ServerSettings`, checked.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firp.runtime.arguments import TRUTH, Rule, check_fields, real, whole
from firp.runtime.errors import FirpError

_NAME = re.compile(r"[\w./:@+-]{1,200}")
_KEY = re.compile(r"[\x21-\x7e]{1,500}")  # what a header can carry


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server. Raises FirpError for values out of range, by name."""

    served_model_name: tuple[str, ...] = ()  # the first is the model's id; (): the bundle's folder
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # one of them is asked for; (): none is
    max_body_bytes: int = 4 << 20
    max_tokens: int | None = None  # that a request may ask for; None: what the context has room for
    default_max_tokens: int = 1024  # of an answer whose request names none: memory is reserved for all
    max_samples: int = 64  # answers of one request, of all its prompts: more than a queue holds never fit
    max_requests: int = 256  # open at once, decoding, queued or still arriving
    max_connections: int = 512  # open at once, whether or not they ask for something
    headers_timeout_s: float = 30.0  # until the headers of a connection's next request are complete
    body_timeout_s: float = 30.0  # until a request's body has arrived
    send_timeout_s: float = 60.0  # that a client may leave a piece of an answer unread
    drain_s: float = 30.0  # that running requests get after SIGTERM
    plain: bool = False  # decode without drafts

    def __post_init__(self):
        check_fields(self, _RULES)
        keys = _texts(_KEY)(self.api_keys)
        if keys is None:  # they are not shown
            raise FirpError("bad api keys", expected="printable ASCII without spaces")
        object.__setattr__(self, "api_keys", keys)

    def admits(self, key: str) -> bool:
        """Whether a key is one of ours, compared in constant time."""
        given = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        found = [hmac.compare_digest(given, hashlib.sha256(ours.encode()).digest()) for ours in self.api_keys]
        return not found or any(found)


def _texts(form: re.Pattern) -> Callable[[Any], tuple[str, ...] | None]:
    def convert(value: Any) -> tuple[str, ...] | None:
        texts = tuple(value) if isinstance(value, list | tuple) else None
        good = texts is not None and all(isinstance(text, str) and form.fullmatch(text) for text in texts)
        return texts if good else None

    return convert


def _always(_: Any) -> bool:
    return True


_SECONDS = Rule(real, lambda value: 0 <= value <= 86400, "seconds, 0 to 86400")
_RULES = {
    "served_model_name": Rule(_texts(_NAME), _always, "names of letters, digits and ./:@+-_"),
    "max_body_bytes": whole(1024),
    "max_tokens": whole(1).or_none(),
    "default_max_tokens": whole(1),
    "max_samples": whole(1),
    "max_requests": whole(1),
    "max_connections": whole(1),
    "headers_timeout_s": _SECONDS,
    "body_timeout_s": _SECONDS,
    "send_timeout_s": _SECONDS,
    "drain_s": _SECONDS,
    "plain": TRUTH,
}


def read_keys(path: Path) -> tuple[str, ...]:
    """API keys of a file, one a line; empty lines and those that begin with # are none. Raises FirpError
    for a file that holds none.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise FirpError("cannot read the API keys", got=f"'{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FirpError("cannot read the API keys", got=f"'{path}', which is no text") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise FirpError("no API key in the file", got=f"'{path}'", expected="one key a line")
    return keys
