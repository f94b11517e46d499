"""What `peers.py` compares: each peer in a virtual environment of its own, and the model in the
peer's format. Both are kept, and made only once.

In: a folder, the model, how many threads. Out: `Peer`s that can be started; `Absent` for those that
cannot be installed or do not take the model.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

WORKERS = Path(__file__).parent / "peer_workers"
GENAI = {"float32": "fp32", "int8": "int8", "int4": "int4"}  # as its builder names them
OPENVINO = {  # arguments of its converter
    "float32": ["fp32"],
    "int8": ["int8"],
    "int4": ["int4", "--group-size", "32"],  # its default, 128, does not divide every model
}
GGUF_TYPES = ("Q8_0", "Q4_0")
work_option = click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir(), "firp-peers"),
    show_default=True,
    help="Where environments, models and lines are kept.",
)


class Peer(NamedTuple):
    """A model in one format, and the process that decodes with it."""

    label: str
    command: list[str]  # of its worker
    options: dict[str, Any]  # that the worker loads with


class Absent(Exception):
    """A peer that is left out, and why, in one line."""


class Workshop:
    """The folder with the environments, and with one model in all formats.

    work: the folder; model: its name, a folder in it; threads: of every peer.
    """

    def __init__(self, work: Path, model: str, threads: int):
        self.environments = work / "environments"
        self.folder = work / model
        self.threads = threads
        for folder in (self.environments, self.folder):
            folder.mkdir(parents=True, exist_ok=True)

    def peer(self, label: str, python: Path | str, script: str, model: Path, **options: Any) -> Peer:
        """A peer that runs `script` with this Python."""
        options = {"model": str(model), "threads": self.threads, **options}
        return Peer(label, [str(python), str(WORKERS / script)], options)

    def run(self, what: str, command: Sequence[object], changes: Mapping[str, str] | None = None) -> None:
        """Run a command, what it says in a file. Raises Absent with its last words when it fails."""
        print(f"{what} …", file=sys.stderr, flush=True)
        log = self.folder / f"{what.replace(' ', '-').replace('/', '-')}.log"
        with log.open("wb") as out:
            done = subprocess.run(
                [str(part) for part in command],
                env={**os.environ, **(changes or {})},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        if done.returncode:
            words = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
            why = words[-1].replace(f"{self.folder}/", "") if words else str(done.returncode)
            raise Absent(f"{what} failed: {why:.200}")

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file or folder beside the model's others; `make` writes it where it is told to, once."""
        path, unfinished = self.folder / name, self.folder / f"unfinished-{name}"
        if not path.exists():
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            make(unfinished)
            unfinished.rename(path)
        return path

    def environment(self, name: str, *requirements: object) -> Path:
        """The Python of an environment with these packages, installed once."""
        folder = self.environments / name
        python, installed = folder / "bin" / "python", folder / "installed"
        if not installed.exists():
            self.run(f"environment of {name}", [sys.executable, "-m", "venv", "--clear", folder])
            self.run(f"installation of {name}", [python, "-m", "pip", "install", *requirements])
            installed.touch()
        return python


def firp(shop: Workshop, label: str, bundle: Path) -> Peer:
    """A bundle."""
    return shop.peer(f"firp {label}", sys.executable, "run_firp.py", bundle)


def exported(shop: Workshop, model: Path, quantize: str | None) -> Path:
    """The bundle of a model, without predictors. quantize: as `firp export --quantize`; None:
    float32."""
    name = quantize or "float32"
    command = [sys.executable, "-m", "firp.cli", "export", model, "--dtype", "float32", "--no-verify"]
    command += ["--quantize", quantize] if quantize else []
    return shop.made(f"firp-{name}", lambda path: shop.run(f"export {name}", [*command, "-o", path]))


def transformers(shop: Workshop, model: Path) -> Peer:
    """transformers in float32, as it is installed beside firp: its exporter needs it too."""
    return shop.peer("transformers float32", sys.executable, "run_transformers.py", model)


def genai(shop: Workshop, model: Path, name: str) -> Peer:
    """onnxruntime-genai. name: of a precision. Its builder runs beside firp, whose exporter needs
    the same packages."""
    python = shop.environment("onnxruntime-genai", "onnxruntime-genai")
    (package,) = (python.parents[1] / "lib").glob("python*/site-packages/onnxruntime_genai")
    builder = [sys.executable, package / "models" / "builder.py", "-i", model, "-p", GENAI[name]]
    builder += ["-e", "cpu", "-c", shop.folder / "cache"]
    what = f"onnxruntime-genai builder {name}"
    built = shop.made(f"genai-{name}", lambda path: shop.run(what, [*builder, "-o", path]))
    return shop.peer(f"onnxruntime-genai {name}", python, "run_genai.py", built)


def llama_cpp(shop: Workshop, gguf: Path, name: str | None, context: int) -> Peer:
    """llama.cpp, compiled for this processor. name: the type to quantize to, None for the file as it
    is; context: tokens that it makes room for."""
    python = shop.environment("llama-cpp-python", _llama_cpp_wheel(shop))
    if name is None:
        label, model = f"{_file_type(gguf)}, the file", gguf
    else:
        command = [python, WORKERS / "quantize_gguf.py", gguf]
        what = f"llama.cpp quantization {name}"
        model = shop.made(f"{name}.gguf", lambda path: shop.run(what, [*command, path, name]))
        label = name
    return shop.peer(f"llama.cpp {label}", python, "run_llama_cpp.py", model, context=context)


def _llama_cpp_wheel(shop: Workshop) -> Path:
    """The wheel, compiled once: pip's own cache does not know with which options one was made."""
    wheels = shop.environments / "wheels"
    if not list(wheels.glob("llama_cpp_python-*.whl")):
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "-w", wheels]
        native = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(shop.threads)}
        shop.run("compilation of llama.cpp", [*command, "llama-cpp-python"], native)
    return next(wheels.glob("llama_cpp_python-*.whl"))


def _file_type(gguf: Path) -> str:
    """The type that a GGUF file says it is of, as in "Q4_1"."""
    import gguf as library

    try:
        field = library.GGUFReader(gguf).get_field("general.file_type")
    except ValueError as error:
        raise Absent(f"no GGUF file: {error}") from error
    known = field is not None
    return library.LlamaFileType(int(field.contents())).name.removeprefix("MOSTLY_") if known else "unknown"


def openvino(shop: Workshop, model: Path, name: str) -> Peer:
    """OpenVINO GenAI. name: of a precision."""
    python = shop.environment("openvino", "optimum-intel", "openvino-genai", "torch")
    command = [python.parent / "optimum-cli", "export", "openvino", "--model", model]
    command += ["--task", "text-generation-with-past", "--weight-format", *OPENVINO[name]]
    what = f"OpenVINO conversion {name}"
    converted = shop.made(f"openvino-{name}", lambda path: shop.run(what, [*command, path]))
    exact = {"INFERENCE_PRECISION_HINT": "f32"} if name == "float32" else {}  # else bfloat16 where it is fast
    return shop.peer(f"OpenVINO {name}", python, "run_openvino.py", converted, **exact)
