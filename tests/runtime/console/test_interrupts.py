"""Ctrl-C and SIGTERM, while a command imports and while it decodes."""

import os
import signal
import subprocess
import sys

import pytest

from firp.runtime.console.interrupts import SIGNALS, cancel_on_interrupt

HOLD = """
import os, signal
from firp.runtime.console.interrupts import quit_on_interrupt
with quit_on_interrupt():
    try:
        os.kill(os.getpid(), signal.{name})
        while True:
            pass
    finally:
        print("undone")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_around_imports_a_signal_ends_the_process_with_one_line(name):
    result = subprocess.run([sys.executable, "-c", HOLD.format(name=name)], capture_output=True, text=True)
    assert (result.returncode, result.stderr, result.stdout) == (1, "error: interrupted\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_the_event_and_the_second_interrupts(number):
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), cancel_on_interrupt() as cancel:
            os.kill(os.getpid(), number)
            assert cancel.wait(timeout=10)
            os.kill(os.getpid(), number)
            signal.pause()
    finally:
        signal.signal(number, before)


def test_handlers_are_those_of_before_afterwards():
    before = [signal.getsignal(number) for number in SIGNALS]
    with cancel_on_interrupt():
        during = [signal.getsignal(number) for number in SIGNALS]
    assert during != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
