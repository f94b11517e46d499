"""The one line that an error is."""

from firp.runtime.errors import BundleError, CheckpointError


def test_a_line_says_what_was_got_what_was_expected_and_what_to_do():
    error = BundleError("bad size", got=3, expected=4, fix="export again")
    assert str(error) == "bad size | got 3, expected 4. Fix: export again"


def test_another_kind_with_another_fix_keeps_the_mistake():
    error = BundleError("bad size", got=3, expected=4).with_fix(CheckpointError, "calibrate again")
    assert type(error) is CheckpointError
    assert str(error) == "bad size | got 3, expected 4. Fix: calibrate again"
