"""Commands that are killed, have no room, may not write, or write at once: what is left on the disk.

In: a small random Llama. Out: a table of what was done how
often, and what was found. What lies under the name of a bundle must be whole, the old one or the new;
the next start of a command must leave nothing beside it; a saved session is the old file or the new.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, of which forks are made
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import click
from forked import Ended, Running
from support.small_models import make_model, make_predictors
from table import Result

from firp.export.leftovers import repair, repair_all
from firp.runtime.bundle.engine_record import engine_folders
from firp.runtime.bundle.format import load_bundle
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.scheduling.prefix_file import load_prefix, save_prefix

ROOM = (20 << 10, 60 << 10, 150 << 10)  # bytes of a disk, less than a bundle takes
_BUILD = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--max-context", 64, "--max-rows", 16)
GOOD = ("whole", "no bundle", "no file yet", "one line, nothing left", "not tried: no mount")
# a session that is written again and again, until the process is killed
_SAVES = """
import sys
from firp.runtime.engine import Engine
from firp.runtime.scheduling.prefix_file import save_prefix
import numpy as np
from firp.runtime.bundle.dtypes import DTYPES
engine = Engine.load(sys.argv[1], threads=1)
model, attention = engine.model, engine.model.attention
shape = (model.slabs, attention.num_key_value_heads, 64, attention.head_dim)
from pathlib import Path
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    blocks = [np.full(shape, turn, DTYPES[engine.manifest.precision.cache].storage)] * 3
    save_prefix(Path(sys.argv[2]), engine.manifest, list(range(192)), blocks, [turn])
"""


class Scene:
    """A folder with a whole bundle, and what has been found so far: (what was done, outcome) -> times."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        self.found: Counter[tuple[str, str]] = Counter()
        self.model = make_model(folder / "model", "llama")
        self.predictors = make_predictors(folder / "predictors", self.model)
        self.bundle = folder / "bundle"
        self.export_seconds = self.timed("export", *self.exported(self.bundle))
        self.export_seconds = self.timed("export", *self.exported(self.bundle))
        self.digest = _digest(self.bundle)

    def exported(self, bundle: Path) -> list[object]:
        """Arguments of an export to a bundle that may be replaced."""
        options = ("--predictors", self.predictors, "--dtype", "float16", "--no-verify", "--force")
        return [self.model, "-o", bundle, *options]

    def timed(self, *arguments: object) -> float:
        """Seconds that a command takes, which must not fail."""
        began = time.perf_counter()
        status, said = Running(*arguments).wait()
        if status:
            raise AssertionError(said)
        return time.perf_counter() - began

    def killed(self, longest: float, *arguments: object) -> None:
        """Start a command, and end it at a random moment."""
        running = Running(*arguments)
        time.sleep(self.rng.random() * longest)
        running.kill()
        running.wait()

    def judge(self, what: str, bundle: Path) -> None:
        """Note whether the bundle is whole, and nothing lies beside it after the next start."""
        repair(bundle)
        beside = [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")]
        self.found[what, "left beside it" if beside else _wholeness(bundle, self.digest)] += 1


def _digest(bundle: Path) -> str:
    return load_bundle(bundle).manifest.files["model.safetensors"].sha256


def _wholeness(bundle: Path, digest: str) -> str:
    if not bundle.exists():
        return "no bundle"
    try:
        load_bundle(bundle)
    except FirpError as error:
        return f"damaged: {error!s:.80}"
    return "whole" if _digest(bundle) == digest else "another bundle"


def kill_exports(scene: Scene, times: int) -> None:
    """Exports killed: half of them to a new name, half over a bundle."""
    for index in range(times):
        over = index % 2 == 0
        output = scene.bundle if over else scene.folder / "fresh" / "bundle"
        output.parent.mkdir(exist_ok=True)
        scene.killed(1.1 * scene.export_seconds, "export", *scene.exported(output))
        scene.judge("export over a bundle, killed" if over else "export to a new name, killed", output)
        if not over:
            shutil.rmtree(output.parent)


def kill_builds(scene: Scene, times: int) -> None:
    """Builds of engines killed: the bundle is whole, and an engine folder has its record, or is none."""
    build = ("build", scene.bundle, *_BUILD, "--force")
    longest = scene.timed(*build)
    for _ in range(times):
        scene.killed(longest, *build)
        folders = engine_folders(scene.bundle)
        parts = [folder for folder in folders if not (folder / "engine.json").is_file()]
        repair_all(scene.bundle / "engines")
        left = [path.name for path in (scene.bundle / "engines").iterdir() if path.name.startswith(".")]
        if parts or left:
            scene.found["build over engines, killed", f"parts: {parts}, {left}"] += 1
        else:
            scene.judge("build over engines, killed", scene.bundle)


def kill_saves(scene: Scene, times: int) -> None:
    """Processes killed that write a session again and again; then it is written once more."""
    file = scene.folder / "talk.session"
    with Engine.load(scene.bundle, threads=1) as engine:
        for _ in range(times):
            _kill_saving(scene, file)
            found = _session(engine, file)
            for part in scene.folder.glob(".talk.session.partial-*"):
                os.utime(part, (0, 0))  # as if some hours had passed
            save_prefix(file, engine.manifest, [], [], [])
            left = any(scene.folder.glob(".talk.session.partial-*"))
            scene.found["session saves, killed", found + ", a part beside it" if left else found] += 1
            file.unlink()


def _kill_saving(scene: Scene, file: Path) -> None:
    program = [sys.executable, "-c", _SAVES, str(scene.bundle), str(file)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as running:
        running.stdout.readline()
        time.sleep(scene.rng.random() * 0.3)
        running.send_signal(signal.SIGKILL)


def _session(engine: Engine, file: Path) -> str:
    if not file.exists():
        return "no file yet"
    saved = load_prefix(file, engine.manifest, lambda notes: notes)
    same = all((block == saved.notes[0]).all() for block in saved.blocks)
    return "whole" if same and len(saved.tokens) == 192 else "mixed"


def fill_disks(scene: Scene, times: int) -> None:
    """Exports onto a disk that is too small, where one may be mounted."""
    disk = scene.folder / "disk"
    disk.mkdir()
    for index in range(times):
        room = ROOM[index % len(ROOM)]
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", disk]).returncode:
            scene.found["export onto a full disk", "not tried: no mount"] += 1
            return
        try:
            ended = Running("export", *scene.exported(disk / "bundle")).wait()
            scene.found["export onto a full disk", _refused(ended, list(disk.iterdir()))] += 1
        finally:
            subprocess.run(["umount", disk], check=True)


def limit_files(scene: Scene, times: int) -> None:
    """Exports over a bundle, in processes whose files may only have so many bytes."""
    for index in range(times):
        room = ROOM[index % len(ROOM)]

        def limit(room: int = room) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        ended = Running("export", *scene.exported(scene.bundle), before=limit).wait()
        said = _refused(ended, [])
        what = "export over a bundle, files limited"
        scene.judge(what, scene.bundle) if said == "one line, nothing left" else scene.found.update(
            [(what, said)]
        )


def _refused(ended: Ended, left: list[Path]) -> str:
    lines = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    if ended.status != 1 or len(lines) != 1 or "Traceback" in ended.said:
        return f"status {ended.status}: {ended.said[-200:]!r}"
    return f"left: {sorted(path.name for path in left)}" if left else "one line, nothing left"


def read_only(scene: Scene) -> None:
    """Exports into a folder mounted read-only: permissions do not bind root."""
    disk = scene.folder / "sealed"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", disk]).returncode:
        scene.found["export into a read-only folder", "not tried: no mount"] += 1
        return
    try:
        ended = Running("export", *scene.exported(disk / "bundle")).wait()
        scene.found["export into a read-only folder", _refused(ended, list(disk.iterdir()))] += 1
    finally:
        subprocess.run(["umount", disk], check=True)


def write_at_once(scene: Scene, times: int) -> None:
    """Two exports over one bundle at once."""
    for _ in range(times):
        both = [Running("export", *scene.exported(scene.bundle)) for _ in range(2)]
        ended = [running.wait() for running in both]
        wrong = [each.said[-200:] for each in ended if each.status not in (0, 1) or "Traceback" in each.said]
        if wrong:
            scene.found["two exports at once", str(wrong)] += 1
        else:
            scene.judge("two exports at once", scene.bundle)


@click.command()
@click.option("--kills", default=100, show_default=True, help="Exports that are killed.")
@click.option("--seed", default=1, show_default=True)
def main(kills, seed):
    """Kill, fill, seal; look what is left."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), random.Random(seed))
        kill_exports(scene, kills)
        fill_disks(scene, 6)
        limit_files(scene, 6)
        read_only(scene)
        write_at_once(scene, 10)
        kill_builds(scene, max(1, kills // 5))
        kill_saves(scene, max(1, kills // 5))  # last: an engine has threads, which no fork takes along
    result = Result("kills", "Killed, out of room, read-only, at once: what is left on the disk")
    table = result.table("What was found", "what", "found", "times")
    for (what, outcome), count in sorted(scene.found.items()):
        table.add(what, outcome, count)
    result.note(
        f"An export of the small random Llama takes {scene.export_seconds:.2f} s here; a kill comes at any "
        "moment of it, or a little after."
    )
    result.write()
    if bad := [pair for pair in scene.found if pair[1] not in GOOD]:
        raise SystemExit(f"failed: {bad}")


if __name__ == "__main__":
    main()
