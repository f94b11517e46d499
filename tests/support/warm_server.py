"""A process that has imported what commands import for seconds, and forks a child for every command.

In: the number of a socket of packets; each packet is a command as JSON (arguments, folder, environment)
with three open files, for its stdin, stdout and stderr. Out: its exit status. Nothing of firp is
imported here: a child does that as `python -m firp.cli` would; where it succeeds, it also ends as that
would, modules taken apart.
"""

import atexit
import gc
import json
import os
import runpy
import socket
import sys

import torch
import transformers
from transformers.models.llama import modeling_llama

WARM = (torch, transformers.CONFIG_MAPPING, transformers.AutoModelForCausalLM, modeling_llama)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.collect()
    gc.freeze()
    while packet := socket.recv_fds(control, 2**20, 3):
        message, files, _, _ = packet
        if not message:
            return
        child = os.fork()
        if child == 0:
            control.close()
            become(json.loads(message), files)
            return
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        control.send(str(os.waitstatus_to_exitcode(status)).encode())


def become(command: dict, files: list[int]) -> None:
    """Be the process of one command; its SystemExit ends this one too."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    sys.argv[1:], sys.path[0] = command["arguments"], command["folder"]
    try:
        runpy.run_module("firp.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int) and end.code:
            leave(end.code)
        raise


def leave(status: int) -> None:
    """End a command that was refused, without taking apart all that was imported: half a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
