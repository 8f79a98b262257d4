"""What the parts of study methods share: its params, its folders, and where a point's clock is kept.

A point is a method and a seed. Its figures stand in artifacts/studies/methods/<METHOD>-<SEED>.json, the same bytes for
the same inputs. Seconds and peak memory are of a machine and no part of a result, so they stand beside the stages' own,
in .state/methods_<METHOD>-<SEED>.json, with the sha256 of the figures that they belong to.
"""

import hashlib
import json
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from ajuste.core.home import home, write_atomically
from ajuste.core.params import Config, read_yaml, typed

PARAMS, POINTS = Path("studies/methods/params.yaml"), Path("artifacts/studies/methods")
SFT, BEST = "sft", "best-of-n"
UNTRAINED = (SFT, BEST)  # the SFT model's own weights answer


class MethodsConfig(Config):
    """studies/methods/params.yaml."""

    methods: list[str] = Field(min_length=2, description="What is compared; the first is the SFT model.")
    seeds: list[int] = Field(min_length=1, description="Of a training and of its answers.")
    samples: int = Field(ge=1, description="Answers that a method may sample for its training.")
    n: int = Field(ge=2, description="Answers drawn for one that is given or learnt.")
    held_back: int = Field(ge=1, description="Prompts of rejection's budget that choose the epoch.")
    prompts: int = Field(ge=2, description="Test prompts, the lowest row ids.")
    judged: int = Field(ge=2, description="Of those, how many the judge of words compares.")
    judge: str = Field(description="Its name in studies/rlaif/params.yaml.")
    pairs: int = Field(ge=2, description="Test comparisons of the displacement.")
    rows: int = Field(ge=2, description="Test rows of the held-out loss.")
    references: int = Field(ge=1, description="Answers with references.")
    text_rows: int = Field(ge=2, description="Items of each control set of texts.")
    choice_rows: int = Field(ge=2, description="Items of each control set of multiple choice.")
    bootstrap: int = Field(ge=100, description="Resamples of the prompts.")
    wanted: float = Field(gt=0, description="A difference of gold worth having.")

    @model_validator(mode="after")
    def _beside_sft(self) -> Self:
        if self.methods[0] != SFT:
            raise ValueError(f"the first method is what all are held against: `{SFT}`")
        return self


def read() -> MethodsConfig:
    """The study's params. Raises UsageError for a wrong key."""
    return typed(MethodsConfig, read_yaml(PARAMS), PARAMS.as_posix())


def path_of(method: str, seed: int) -> Path:
    """Where a point's figures stand."""
    return POINTS / f"{method}-{seed}.json"


# --- the clock --------------------------------------------------------------------------------------------------------


def keep_cost(method: str, seed: int, cost: dict) -> None:
    """Write what a point took beside its figures, which are there. cost: seconds, peak_memory_mb, device, threads."""
    state = {"stage": f"methods_{method}-{seed}", "of": _sha256(path_of(method, seed)), **cost}
    write_atomically(_state(method, seed), json.dumps(state, indent=2) + "\n")


def cost_of(method: str, seed: int) -> dict | None:
    """What a point took, None where these figures were not made on this machine (DVC may bring them from its cache)."""
    try:
        found = json.loads(_state(method, seed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("of") == _sha256(path_of(method, seed)) else None


def _state(method: str, seed: int) -> Path:
    return home() / ".state" / f"methods_{method}-{seed}.json"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
