"""Imports point one way: cli → calib → export → runtime."""

import ast

ALLOWED = {
    "runtime": {"runtime"},
    "export": {"export", "runtime"},
    "calib": {"calib", "export", "runtime"},
    "cli.py": {"calib", "export", "runtime"},
}
SHOWN_TO_A_PERSON = {"terminal.py", "demo.py"}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_import_points_back(pytestconfig):
    seen = 0
    for place, allowed in ALLOWED.items():
        path = pytestconfig.rootpath / place
        for file in [path] if path.is_file() else path.glob("*.py"):
            own = {name.split(".")[1] for name in imports(file) if name.startswith("firp.")}
            assert own <= allowed, file
            seen += len(own)
            others = {name.split(".")[0] for name in imports(file)}
            if place == "runtime":
                heavy = {"torch", "transformers", "onnx", "onnx_ir", "polygraphy", "matplotlib"} | (
                    set() if file.name in SHOWN_TO_A_PERSON else {"rich", "click"}
                )
                assert others.isdisjoint(heavy), file
    assert seen > 20
