"""Row ids and splits: hashes of what a row says, so that adding rows never moves one.

    row_id     = first 16 hex digits of sha256(JSON of [set, text, label, source]), as they stand in the file
    split text = NFKC, case-folded, blanks collapsed
    split      = sha256(split text), its first 8 bytes as u in [0, 1):  u < 0.8 train, u < 0.9 validation, else test

Two rows with the same split text are in the same split, whatever file they came from.
"""

import hashlib
import json
import unicodedata

SPLITS = ("train", "validation", "test")


def row_id(set_name: str, text: str, label: str, source: str) -> str:
    """16 hex digits of the raw fields; an undecodable byte is a lone surrogate, which JSON writes as \\udcNN."""
    canonical = json.dumps([set_name, text, label, source], separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def split_text(text: str) -> str:
    """What two texts must share to count as the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_digest(normal: str) -> bytes:
    """sha256 of a split text, 32 bytes: decides the split and finds exact duplicates."""
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()


def split_of(digest: bytes) -> int:
    """Index into SPLITS: 80, 10 and 10 % of all digests, decided in whole numbers."""
    tenth = int.from_bytes(digest[:8], "big") * 10 >> 64
    return 0 if tenth < 8 else tenth - 7


def in_sample(identifier: str, share: float) -> bool:
    """True for `share` of all row ids, always the same ones; a larger share keeps all of a smaller one."""
    return int(identifier, 16) < share * 2**64
