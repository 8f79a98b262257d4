"""sha256 of files, read once: a file whose inode, size and time of change are the same is not read again.

The same process asks for the same few weights many times: of a base before and after a merge, of an adapter for its
proof and for its registration. (The md5 that DVC knows files by is remembered between processes: stages.py.)
"""

import hashlib
import time
from pathlib import Path

SETTLED = 2.0  # seconds since its last change; a second change in the same tick of the clock would not be seen

_known: dict[tuple[str, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    stat = path.stat()
    key = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _known:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - stat.st_mtime <= SETTLED:
            return found
        _known[key] = found
    return _known[key]
