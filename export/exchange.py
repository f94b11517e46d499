"""Two paths that swap what they name in one move, where the system can.

In: two existing paths of one file system. Out: whether they were swapped; where not, nothing has
changed.
"""

import ctypes
import os
from pathlib import Path

_WORKING_FOLDER = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h


def exchange(first: Path, second: Path) -> bool:
    """Swap two paths (Linux: renameat2). False where the system or the file system cannot, or does
    not want to.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return rename(_WORKING_FOLDER, os.fsencode(first), _WORKING_FOLDER, os.fsencode(second), _EXCHANGE) == 0
