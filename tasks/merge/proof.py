"""How every merge ends: with a proof beside the merged weights, or without merged weights."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.core.figures import bound, rounded, write_json


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
    """The proof as it is written to proof.json: what is mere rounding noise in it is an upper bound of one digit."""
    limits = {"max_logit_difference": proof.get("tolerance"), "max_weight_difference": math.inf}
    bounds = {name: bound(proof[name], limit) for name, limit in limits.items() if name in proof}
    proof = rounded({**proof, **bounds})
    write_json(out / "proof.json", proof, indent=2)
    return proof


def said(proof: dict) -> str:
    """The proof in one line."""
    if not proof.get("merged", True):
        return f"not merged: {proof['why']}"
    equal = f"{proof['equal_predictions']:.2%} equal predictions"
    if "equal_greedy_tokens" in proof:
        equal += f", {proof['equal_greedy_tokens']:.2%} of {proof['greedy_tokens']} greedy tokens equal"
    difference = f"largest logit difference {proof['max_logit_difference']:.2g} over {proof['rows']} rows"
    return f"merged == adapter: {difference}, {equal}"
