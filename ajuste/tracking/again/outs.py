"""Two outs of one stage, the recorded and the new: equal, within a tolerance, or different, and by how much.

    difference of two numbers     |a - b| / max(1, |a|): absolute below 1, relative above
    safetensors                   tensor by tensor; names, shapes and types must be the same
    JSON, JSON lines, parquet     number by number; integers, texts and structure must be the same
    anything else                 its bytes must be the same

A sha256 or md5 that stands inside a file is not compared: it names bytes, which differ where numbers do.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from ajuste.core.stages import md5_of
from ajuste.tracking.again.inputs import cached, cached_bytes

DIGEST = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
EQUAL, WITHIN, DIFFERENT = "equal", "within tolerance", "different"


@dataclass(frozen=True)
class Out:
    """One out. `largest`: the largest difference, 0 if equal, infinite if it cannot be measured; `where`: its place."""

    stage: str
    path: str
    verdict: str
    largest: float = 0.0
    where: str = ""

    def text(self) -> str:
        """What the comparison found, in one line."""
        if self.verdict == EQUAL:
            return f"{self.path}: equal"
        size = f"largest difference {self.largest:.2g}, " if math.isfinite(self.largest) else ""
        return f"{self.path} of stage {self.stage}: {self.verdict} ({size}{self.where})"


def compare(recorded: dict, made: dict, folder: Path, tolerance: float | None,
            kept: dict[str, Path] | None = None) -> list[Out]:
    """Every out of `recorded` against that of `made`, whose files stand below `folder`.

    `tolerance` None: only equal bytes will do. `kept` has recorded outs by path, for those that DVC's cache lacks.
    """
    found = []
    for stage, entry in recorded.items():
        hashes = {out["path"]: out["md5"] for out in made.get(stage, {}).get("outs", [])}
        for out in entry.get("outs", []):
            path, old, new = out["path"], out["md5"], hashes.get(out["path"])
            if new == old:
                found.append(Out(stage, path, EQUAL))
                continue
            if new is None:
                found.append(Out(stage, path, DIFFERENT, math.inf, "it was not made"))
                continue
            files = recorded_files(old, (kept or {}).get(path))
            if files is None:
                where = f"{old} -> {new}; the recorded bytes are not in the DVC cache"
                found.append(Out(stage, path, DIFFERENT, math.inf, where))
                continue
            largest, where = _largest(files, folder / path)
            within = tolerance is not None and largest <= tolerance
            found.append(Out(stage, path, WITHIN if within else DIFFERENT, largest, where))
    return found


def recorded_files(md5: str, kept: Path | None = None) -> dict[str, Path] | None:
    """The files of a recorded out by relative path ("" of a single file), or None if no copy of all of them is left."""
    if md5.endswith(".dir"):
        listing = cached_bytes(md5)
        entries = json.loads(listing) if listing else []
        files = {entry["relpath"]: cached(entry["md5"]) for entry in entries}
    else:
        files = {"": cached(md5)}
    if files and all(files.values()):
        return files
    if kept and kept.is_dir() and md5_of(kept) == md5:
        return {file.relative_to(kept).as_posix(): file for file in sorted(kept.rglob("*")) if file.is_file()}
    return None


def _largest(old: dict[str, Path], new: Path) -> tuple[float, str]:
    """(largest difference, its place) over the files of an out."""
    made = {"": new} if new.is_file() else {
        file.relative_to(new).as_posix(): file for file in sorted(new.rglob("*")) if file.is_file()}
    worst = (0.0, "digests alone")
    for name in sorted(old.keys() | made.keys()):
        if name not in made:
            return math.inf, f"{name} is gone"
        if name not in old:
            return math.inf, f"{name} is new"
        if old[name].read_bytes() != made[name].read_bytes():
            size, where = difference(old[name], made[name])
            shown = f"{name or new.name}: {where}" if where else name or new.name
            worst = max(worst, (size, shown), key=lambda pair: pair[0])
    return worst


def difference(old: Path, new: Path) -> tuple[float, str]:
    """(largest difference, its place) of two files; the kind of file is told by the name of `new`."""
    if new.suffix == ".safetensors":
        return _tensors(old, new)
    if new.suffix in (".json", ".jsonl", ".parquet"):
        try:
            a, b = (_values(path, new.suffix) for path in (old, new))
        except ValueError:
            return math.inf, "one of the two cannot be read"
        return _nested(a, b, "")
    a, b = old.read_bytes(), new.read_bytes()
    return math.inf, f"byte {first_byte(a, b)} and others"


def first_byte(a: bytes, b: bytes) -> int:
    """The place of the first byte that differs, from 0."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _tensors(old: Path, new: Path) -> tuple[float, str]:
    from safetensors import SafetensorError, safe_open

    worst = (0.0, "header")
    try:
        with safe_open(old, "pt") as a, safe_open(new, "pt") as b:
            if set(a.keys()) != set(b.keys()):
                return math.inf, f"tensor {min(set(a.keys()) ^ set(b.keys()))} is in one of the two"
            for name in sorted(a.keys()):
                x, y = a.get_tensor(name), b.get_tensor(name)
                if x.shape != y.shape or x.dtype != y.dtype:
                    return math.inf, f"tensor {name}: {y.dtype} {list(y.shape)} for {x.dtype} {list(x.shape)}"
                if x.equal(y):
                    continue
                if not x.is_floating_point():
                    return math.inf, f"tensor {name}"
                x, y = x.double(), y.double()
                size = float(((x - y).abs() / x.abs().clamp(min=1)).max())
                worst = max(worst, (math.inf if math.isnan(size) else size, f"tensor {name}"), key=lambda p: p[0])
    except SafetensorError:
        return math.inf, "one of the two is no whole safetensors file"
    return worst


def _values(path: Path, suffix: str) -> object:
    if suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def _nested(a: object, b: object, place: str) -> tuple[float, str]:
    """Two values as JSON has them: the largest difference of their numbers, infinite where anything else differs."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        pairs = [(a[key], b[key], f"{place}.{key}".lstrip(".")) for key in a]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(x, y, f"{place}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, float) and isinstance(b, float | int) or isinstance(b, float) and isinstance(a, int):
        if a == b or (math.isnan(a) and math.isnan(b)):
            return 0.0, place
        size = abs(a - b) / max(1.0, abs(a))
        return (math.inf if math.isnan(size) else size), place
    elif isinstance(a, str) and isinstance(b, str) and DIGEST.fullmatch(a) and DIGEST.fullmatch(b):
        return 0.0, place
    else:
        return (0.0 if type(a) is type(b) and a == b else math.inf), place
    return max((_nested(*pair) for pair in pairs), key=lambda found: found[0], default=(0.0, place))
