"""How every merge ends: with a proof beside the merged weights, or without merged weights. Private to the tasks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tasks._stage import DataError, write_atomically


def proved(out: Path, prove: Callable[[], dict]) -> dict:
    """Write what `prove` says of the merged folder `out` to proof.json and return it.

    Raises DataError when it refuses the merge with a ValueError; nothing stays at `out` then.
    """
    try:
        proof = prove()
    except ValueError as error:
        shutil.rmtree(out)
        raise DataError(f"merge refused: {error}") from None
    return written(out, proof)


def written(out: Path, proof: dict) -> dict:
    """The proof, written to proof.json."""
    write_atomically(out / "proof.json", json.dumps(proof, indent=2) + "\n")
    return proof
