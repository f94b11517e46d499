"""A model repository for Triton, written whole or not at all.

In: a bundle. Out: NAME/config.pbtxt and NAME/1/model.py, for the Python backend, decoupled. The bundle
stays where it is; the configuration names it.
"""

import json
import os
import re
import shutil
from pathlib import Path

from firp.runtime.bundle.format import load_bundle
from firp.runtime.errors import FirpError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_MODEL = '''"""What Triton loads: a firp bundle, which config.pbtxt names."""

from firp.runtime.serving.deploy.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_CONFIG = """name: {name}
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ count: 1, kind: KIND_CPU }} ]
parameters {{ key: "bundle" value {{ string_value: {bundle} }} }}
parameters {{ key: "backend" value {{ string_value: {backend} }} }}
input [
  {{ name: "prompt", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "parameters", data_type: TYPE_STRING, dims: [ 1 ], optional: true }}
]
output [
  {{ name: "text", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "token_ids", data_type: TYPE_INT32, dims: [ -1 ] }},
  {{ name: "finish_reason", data_type: TYPE_STRING, dims: [ 1 ] }}
]
"""


def write_repository(bundle: Path, repository: Path, name: str, backend: str) -> Path:
    """The folder of the model in the repository, which other models may share. Raises FirpError for a
    bundle that is none, a name that Triton does not take, and a model that is there already.
    """
    load_bundle(bundle)
    if not _NAME.fullmatch(name):
        raise FirpError("bad model name", got=f"{name!r:.60}", expected="letters, digits, ._-")
    target = repository / name
    if target.exists():
        raise FirpError("output exists", got=f"'{target}'", fix="choose another --name, or remove it")
    fresh = repository / f".{name}.partial-{os.getpid()}"
    try:
        (fresh / "1").mkdir(parents=True)
        (fresh / "1" / "model.py").write_text(_MODEL)
        path = str(bundle.resolve())
        quoted = {"name": name, "bundle": path, "backend": backend}
        config = _CONFIG.format(**{key: json.dumps(value) for key, value in quoted.items()})
        (fresh / "config.pbtxt").write_text(config, "utf-8")
        fresh.rename(target)
    except OSError as error:
        raise FirpError("cannot write the repository", got=f"'{target}': {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target
