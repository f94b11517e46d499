"""The one line that an error is."""

from firp.runtime.errors import BundleError, CheckpointError, FirpError


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
