"""Replacing a folder, broken off at every instant of it: a program for `test_target.py`, light so
that it forks fast.

In: a scratch folder, the name and the marker of a folder in it, "interrupt" or "kill", and whether
the system can exchange two paths. Out, as JSON: for each instant what lies under the name right
then and after the next start, and what else lies beside it then. An instant is right before, or
right after, a system call.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from firp.export import target_folder as module

EXCHANGE = module.exchange.__code__  # its system call is one of ctypes, which nobody watches


class Stop(BaseException):
    """What KeyboardInterrupt is to a program, and nobody else raises."""


def content(label: str, marker: str) -> dict[str, str]:
    return {marker: label, "weights": label * 3, "more/graph": label}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def found(folder: Path, marker: str) -> str:
    """ "old" or "new" when the folder is whole, else what is wrong."""
    if not folder.is_dir():
        return "nothing"
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return next(
        (label for label in ("old", "new") if files == content(label, marker)), f"parts: {sorted(files)}"
    )


def replace(output: Path, marker: str, instant: int, how: str) -> None:
    with module.target_folder(output, marker, force=True) as folder:
        fill(folder, content("new", marker))
        stop_at(instant, how)


def stop_at(instant: int, how: str) -> None:
    """Count the instants from here on, and break off at one of them."""
    passed = itertools.count()

    def watch(frame, event, argument):
        system_call = event in ("c_call", "c_return") and argument.__module__ in ("posix", "fcntl")
        if (system_call or frame.f_code is EXCHANGE) and next(passed) == instant:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stop

    sys.setprofile(watch)


def broken_off(output: Path, marker: str, instant: int, how: str) -> bool:
    """Replace in a child process. Returns whether it was broken off, rather than done before the
    instant came.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            replace(output, marker, instant, how)
            sys.setprofile(None)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status != 0


def main() -> None:
    scratch, name, marker, how, can_exchange = sys.argv[1:]
    if can_exchange == "no":
        module.exchange = lambda first, second: False
    output, outcomes = Path(scratch) / name, []
    for instant in itertools.count():
        shutil.rmtree(output.parent, ignore_errors=True)
        fill(output, content("old", marker))
        if not broken_off(output, marker, instant, how):
            break
        first = found(output, marker)
        module.repair(output)
        others = sorted(path.name for path in output.parent.iterdir() if path != output)
        outcomes.append({"instant": instant, "first": first, "next": found(output, marker), "others": others})
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
