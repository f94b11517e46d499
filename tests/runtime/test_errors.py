"""The one line that an error is."""

import pytest

from firp.runtime.errors import BundleError, CheckpointError, FirpError, foreign_errors


def test_a_line_says_what_was_got_what_was_expected_and_what_to_do():
    error = BundleError("bad size", got=3, expected=4, fix="export again")
    assert str(error) == "bad size | got 3, expected 4. Fix: export again"


def test_another_kind_with_another_fix_keeps_the_mistake():
    error = BundleError("bad size", got=3, expected=4).with_fix(CheckpointError, "calibrate again")
    assert type(error) is CheckpointError
    assert str(error) == "bad size | got 3, expected 4. Fix: calibrate again"


def test_a_long_part_is_cut_in_its_middle():
    line = str(FirpError("x", got="a" * 4000 + "end", fix="mv " + "b" * 1000))
    assert "aaa … aaa" in line
    assert "end. Fix: mv bbb" in line
    assert len(line) < 1500


def test_what_a_terminal_would_obey_is_spelled_out():
    line = str(FirpError("x", got="red \x1b[31m, null \0, half \ud800, naïve 日本"))
    assert line == "x | got red \\x1b[31m, null \\x00, half \\ud800, naïve 日本"


class Panic(BaseException):
    """As PyO3's is."""


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (Panic("\nretry limit\nbacktrace"), "retry limit"),
        (ValueError(), "ValueError"),
        (OSError(2, "x" * 900), "x"),
    ],
)
def test_what_a_library_raises_becomes_one_line(raised, reason):
    with (
        pytest.raises(BundleError, match=f"it fails . got .*{reason}") as caught,
        foreign_errors(lambda said: BundleError("it fails", got=said)),
    ):
        raise raised
    assert len(str(caught.value)) < 300
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(1), BundleError("as it is")])
def test_interrupts_and_our_own_errors_pass_the_guard(raised):
    with pytest.raises(type(raised)) as caught, foreign_errors(BundleError):
        raise raised
    assert caught.value is raised
