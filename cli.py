"""The command line: a table of verbs, and `main`, which runs one.

Results go to stdout, progress and messages to stderr. Exit status: 0 success, 1 a user's mistake,
wrong usage among them, or a failed check (one line, no traceback). A command's module is imported when
its verb is known, and nothing heavy before.
"""

import os
import signal
import sys

TYPE_CHECKING = False  # as type checkers read it; `main` must begin before anything else is imported
if TYPE_CHECKING:
    import click

    from firp.runtime.errors import FirpError

# verb -> the module that holds its command under that name, and the first sentence of its help
COMMANDS = {
    "bench": (
        "firp.runtime.commands.bench",
        "Decode the prompts plainly and drafted, alternating in one process, and compare.",
    ),
    "build": (
        "firp.export.commands.build",
        "Build TensorRT engines for BUNDLE; TensorRT-RTX needs no GPU for that.",
    ),
    "calibrate": (
        "firp.calib.commands.calibrate",
        "Train predictors and path correction for MODEL, a Hugging Face directory or a GGUF file, "
        "calibrate draft trees, and report what they are worth.",
    ),
    "chat": (
        "firp.runtime.commands.chat",
        "Talk with BUNDLE in the terminal; what was said stays in its cache.",
    ),
    "demo": (
        "firp.calib.commands.demo",
        "Export an LLM, verify it, answer with and without drafts, and compare.",
    ),
    "export": (
        "firp.calib.commands.export",
        "Turn MODEL, a Hugging Face directory or a GGUF file, into a bundle.",
    ),
    "families": (
        "firp.export.commands.families",
        "List the families of models that can be exported, and what is supported of each.",
    ),
    "generate": (
        "firp.runtime.commands.generate",
        "Continue prompts from BUNDLE; drafted decoding gives the same tokens as plain decoding, in "
        "fewer passes.",
    ),
    "inspect": (
        "firp.runtime.commands.inspect",
        "Show what BUNDLE holds; its files are checked, nothing is loaded.",
    ),
    "profile": (
        "firp.calib.commands.profile",
        "Measure BUNDLE through polygraphy: latency of each graph over rows, cached tokens and batch, "
        "the parts of a step, layers by kind, and the share of this device's bandwidth and arithmetic.",
    ),
    "serve": (
        "firp.runtime.commands.serve",
        "Serve BUNDLE over HTTP: OpenAI's /v1/chat/completions and /v1/completions, /metrics, and a page "
        "to chat with at /.",
    ),
    "triton": (
        "firp.runtime.commands.triton",
        "Write a model for Triton's Python backend that streams from BUNDLE.",
    ),
    "tune": (
        "firp.runtime.commands.tune",
        "Measure latency against rows on this device, choose the fastest tree, and store the choice in "
        "BUNDLE.",
    ),
    "verify": (
        "firp.calib.commands.verify",
        "Check BUNDLE: file hashes, drafted against plain decoding, engines against ONNX Runtime, both "
        "against Hugging Face.",
    ),
}


def command_line() -> "click.Group":
    """The command `firp` with all its verbs."""
    import click

    from firp.runtime.console.lazy_group import LazyGroup

    text = "Export a Hugging Face model for lossless multi-token decoding, and decode from the bundle."
    group = LazyGroup(
        COMMANDS, name="firp", help=text, context_settings={"help_option_names": ["-h", "--help"]}
    )
    return click.version_option(package_name="firp")(group)


def main() -> None:
    """Run the command that the arguments name, and end the process with its status."""
    # as an exception, so that unfinished folders are removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = _run()
    except KeyboardInterrupt:
        _tell("interrupted")
        status = 1
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (AttributeError, OSError):  # there is none, or no room: Python would end with status 120
            setattr(sys, name, None)
    sys.exit(status)


def _tell(what: "FirpError | str") -> None:
    """Say what was wrong, where there is room for it."""
    try:
        sys.stderr.write(f"error: {what}\n")
    except (AttributeError, OSError):
        sys.stderr = None


def _run() -> int:
    """The exit status of a command, after the one line that says what was wrong."""
    from firp.runtime.console.interrupts import quit_on_interrupt

    # pictures go to files; a notebook's backend would keep matplotlib from being imported
    os.environ["MPLBACKEND"] = "agg"
    # Threads of torch's OpenMP wait for each other at full speed, beside another busy process mostly
    # for one that is not running. Torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with quit_on_interrupt():
        import click

        from firp.runtime.console.usage import usage_error
        from firp.runtime.errors import FirpError
        from firp.runtime.extras import missing_package

        group = command_line()
    if sys.stdout is None:  # it was closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    try:
        group.main(prog_name="firp", standalone_mode=False)
        sys.stdout.flush()
    except FirpError as error:
        _tell(error)
    except click.ClickException as error:
        _tell(usage_error(error))
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except ModuleNotFoundError as error:
        if (error.name or "firp").startswith("firp"):
            raise
        _tell(missing_package("this command", error))
    except BrokenPipeError:  # the reader of our output left, and needs no word
        return 1
    except OSError as error:  # a full disk behind stdout, a path too long
        got = f"{error.filename or 'standard output'!s:.200}"
        _tell(f"{error.strerror or error} | got '{got}'")
    else:
        return 0
    return 1


if __name__ == "__main__":
    main()
