"""Bundles as an author of hostile ones writes them: whatever is changed, every size and hash fits.

In: the folder of a bundle, which is changed in place. Out: nothing but the change.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firp.runtime.bundle.format import manifest_digest


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change firp.json, and make its digest anew."""
    file = bundle / "firp.json"
    data = json.loads(file.read_text())
    del data["sha256"]
    change(data)
    file.write_text(json.dumps({**data, "sha256": manifest_digest(data)}))


def list_again(bundle: Path, *names: str, hashed: bool = True) -> None:
    """List files with the size and, where `hashed`, the digest that they have."""

    def change(data: dict[str, Any]) -> None:
        for name in names:
            file = bundle / name
            digest = hashlib.sha256(file.read_bytes()).hexdigest() if hashed else ""
            data["files"][name] = {"size": file.stat().st_size, "sha256": digest}

    edit_manifest(bundle, change)
