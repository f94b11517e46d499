"""The house: floors rise, a folder imports only what stands below it, rooms stay small, and a wheel
holds all of it.
"""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile

HOUSES = ("runtime", "export", "calib")  # a house imports those before it, and itself
# Rooms by floor; a room is a folder, or a file that stands in its house's own folder.
FLOORS = {
    "runtime": (
        {"errors", "progress", "observer"},
        {"machine", "extras", "arguments", "structured", "console"},
        {"sampling"},
        {"trees", "picking"},
        {"grammar"},
        {"bundle"},
        {"backends"},
        {"passes"},
        {"drafters"},
        {"loop"},
        {"scheduling"},
        {"chat"},
        {"requests"},
        {"calls"},
        {"engine", "prompts"},
        {"tuning", "serving"},
        {"commands"},
    ),
    "export": (
        {"exchange", "leftovers"},
        {"target_folder"},
        {"families", "tensorrt"},
        {"sources"},
        {"weights"},
        {"quantize"},
        {"bundle", "verify"},
        {"commands"},
    ),
    "calib": (
        {"drawing"},
        {"text", "training", "targets"},
        {"report", "profiling", "comparison"},
        {"replay"},
        {"calibrate"},
        {"commands"},
    ),
}
MAX_FILES = 12  # of a folder, its __init__.py not counted
TRAINING = {"torch", "transformers", "onnx", "onnx_ir", "polygraphy", "matplotlib"}
PERSON = {"rich", "click"}  # what shows something to a person
SHOWN = {"console", "commands"}


def python_files(root):
    for house in HOUSES:
        yield from ((house, file.relative_to(root / house), file) for file in (root / house).rglob("*.py"))


def imports(file):
    """Dotted names of the modules that a file imports, wherever in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room_of(parts):
    return parts[0].removesuffix(".py")


def floor_of(house, room):
    floors = [floor for floor, rooms in enumerate(FLOORS[house]) if room in rooms]
    assert floors, f"{house}/{room} stands on no floor"
    return floors[0]


def test_every_room_stands_on_a_floor_and_every_floor_holds_a_room(pytestconfig):
    found = {
        (house, room_of(path.parts))
        for house, path, _ in python_files(pytestconfig.rootpath)
        if path.name != "__init__.py" or len(path.parts) > 1
    }
    declared = {(house, room) for house in HOUSES for rooms in FLOORS[house] for room in rooms}
    assert found == declared


def test_imports_go_down(pytestconfig):
    wrong, seen = [], 0
    for house, path, file in python_files(pytestconfig.rootpath):
        for name in imports(file):
            package, *rest = name.split(".")
            if package != "firp" or rest[0] not in HOUSES:
                continue
            seen += 1
            own, other = room_of(path.parts), rest[1]
            if HOUSES.index(rest[0]) > HOUSES.index(house):
                wrong.append(f"{house}/{path} imports the house {rest[0]}")
            elif rest[0] == house and own != other and floor_of(house, other) >= floor_of(house, own):
                wrong.append(f"{house}/{path} imports {other}, which does not stand below {own}")
    assert wrong == []
    assert seen > 300


def test_files_of_a_room_form_no_circle(pytestconfig):
    edges = {}
    for house, path, file in python_files(pytestconfig.rootpath):
        module = ".".join(("firp", house, *path.with_suffix("").parts))
        edges[module] = {name for name in imports(file) if name.startswith("firp.")}
    modules = set(edges)
    graph = {
        module: {name if name in modules else name.rpartition(".")[0] for name in names} & modules - {module}
        for module, names in edges.items()
    }
    done = set()
    while ready := {module for module in graph if module not in done and graph[module] <= done}:
        done |= ready
    assert sorted(modules - done) == []


def test_the_runtime_needs_nothing_that_trains_or_draws(pytestconfig):
    wrong = []
    for house, path, file in python_files(pytestconfig.rootpath):
        forbidden = TRAINING | (set() if room_of(path.parts) in SHOWN else PERSON)
        if house == "runtime" and (found := {name.split(".")[0] for name in imports(file)} & forbidden):
            wrong.append(f"{path} imports {found}")
    assert wrong == []


def test_rooms_are_small_and_say_what_lives_there(pytestconfig):
    for house in HOUSES:
        top = pytestconfig.rootpath / house
        for folder in [
            top,
            *(path for path in top.rglob("*") if path.is_dir() and path.name != "__pycache__"),
        ]:
            files = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
            assert len(files) <= MAX_FILES, folder
            sentence = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
            assert sentence, folder
            assert sentence.endswith("."), folder


def test_a_wheel_holds_every_package(pytestconfig, tmp_path):
    root = pytestconfig.rootpath
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {file.parent.relative_to(root).as_posix() for _, _, file in python_files(root)}
    assert sorted(listed) == sorted(["firp", *(f"firp.{folder.replace('/', '.')}" for folder in on_disk)])
    source = tmp_path / "source"  # a copy: setuptools would take up what an older build left in ours
    for name in ("cli.py", "__init__.py", "pyproject.toml", "README.md", "tests/demo_model", *HOUSES):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy(root / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("firp-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    wanted = {f"firp/{file.relative_to(root).as_posix()}" for _, _, file in python_files(root)}
    assert {"firp/cli.py", "firp/__init__.py", *wanted} <= names
