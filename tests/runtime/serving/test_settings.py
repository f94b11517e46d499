"""Settings: every one is checked by name, keys come from files, and are compared whole."""

import pytest

from firp.runtime.errors import FirpError
from firp.runtime.serving.settings import ServerSettings, read_keys


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("served_model_name", ("a b",)),
        ("served_model_name", ("",)),
        ("api_keys", ("",)),
        ("api_keys", ("ä",)),
        ("max_body_bytes", 10),
        ("max_body_bytes", None),
        ("max_tokens", 0),
        ("max_requests", 1.5),
        ("max_connections", 0),
        ("headers_timeout_s", -1),
        ("drain_s", -1),
        ("drain_s", float("nan")),
        ("body_timeout_s", True),
    ],
)
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(FirpError, match=f"bad {name.replace('_', ' ')} "):
        ServerSettings(**{name: value})


def test_keys_are_compared_and_not_shown():
    settings = ServerSettings(api_keys=("key-1", "key-2"))
    assert settings.admits("key-1")
    assert settings.admits("key-2")
    assert not any(settings.admits(key) for key in ("key-", "key-11", "", "ke\ud800"))
    assert ServerSettings().admits("")
    assert "key-1" not in repr(settings)


def test_keys_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\n one \n\ntwo\n")
    assert read_keys(file) == ("one", "two")
    file.write_text("# none\n")
    with pytest.raises(FirpError, match="no API key in the file"):
        read_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(FirpError, match="no text"):
        read_keys(file)
    with pytest.raises(FirpError, match="cannot read the API keys"):
        read_keys(tmp_path)
