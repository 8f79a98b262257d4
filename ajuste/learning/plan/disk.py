"""What a run keeps on disk: how many copies of a model, and how large each.

    base          2 P       artifacts/base, in bfloat16 (base.decoder.dtype)
    adapter       4 a       artifacts/adapters: A and B in float32; `full` writes 4 P there
    merged        b P       artifacts/merged, in merge.dtype
    checkpoints   12 n      of n weights that learn: they and Adam's moments; the best and the last stand at once
    DVC's cache   each of these again, where the disk cannot link files; where it can (reflink, hard link), nothing
    registry      merged and adapter, a version each: MLflow keeps files of its own

So a run holds base + adapter + merged, the cache none or all of them again, the registry merged + adapter a version.
"""

from ajuste.learning.plan.parts import Part


def disk(
    P: float, n: float, full: bool, base: int = 2, merged: int = 4, linked: bool = True, versions: int = 1
) -> list[Part]:
    """base, merged: bytes of a stored number. n: weights that learn. linked: DVC's cache shares files with the folders.
    versions: that the registry keeps."""
    own = Part("adapter", 4 * n, "4 a, artifacts/adapters") if not full else Part("whole model", 4 * P, "4 P")
    whole = Part("merged", merged * P, f"{merged} P, artifacts/merged")
    kept = [Part("base", base * P, f"{base} P, artifacts/base"), own, whole]
    again = sum(part.bytes for part in kept)
    return [
        *kept,
        Part("checkpoints, while it trains", 2 * 12 * n, "2 x 12 bytes of each weight that learns"),
        Part("DVC's cache", 0 if linked else again, "0: linked" if linked else "base, adapter and merged again"),
        Part("registry", versions * (own.bytes + whole.bytes), f"{versions} x (adapter + merged)"),
    ]
