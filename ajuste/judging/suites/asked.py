"""What an outside suite is asked about one model, and what is left when it has answered.

    artifacts/probes/<suite>/<model>.json          its scores, in the form of the alignment ledger
    artifacts/probes/<suite>/<model>.asked.json    whose they are: suite and version, model, sha256 of its weights, how
                                                   it was asked, what was asked, and what the ledger has no place for

<model> is NAME-VERSION of a registered model, or the first 16 hex digits of the sha256 of a folder's weights. Nothing
of a clock stands in either file: the same answers give the same bytes. No prompt and no answer does: those stay in the
suite's own log below .probe/.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.core.home import write_atomically
from ajuste.judging.alignment import ledger
from ajuste.judging.alignment.ledger import Ledger
from ajuste.learning.statistics.metrics import wilson_interval

PROBES = Path("artifacts/probes")
SEED = 7  # of the suites' own samplers


@dataclass(frozen=True)
class Target:
    """The model that is asked: at an address, or as a folder of weights; one of the two is None."""

    model: str  # NAME/VERSION, or a folder's own name
    sha256: str | None  # of the weights; None: the server's registry is not this one
    url: str | None = None  # http://127.0.0.1:8000
    folder: Path | None = None

    @property
    def key(self) -> str:
        """Its name as a file and in a ledger: assistant-3, or a folder's digest."""
        return self.model.replace("/", "-").lower() if "/" in self.model else (self.sha256 or "")[:16]


@dataclass(frozen=True)
class Asked:
    """How a suite was run on a model."""

    suite: str
    version: str
    model: str
    sha256: str | None
    how: str  # "server": over HTTP, by chat; "weights": the suite loaded the folder itself
    names: list[str]  # of its probes or tasks
    limit: int  # prompts or rows of each
    seed: int
    left_out: dict[str, str]  # what it measured and the ledger cannot hold: why


def share(k: int, n: int) -> dict[str, float | int]:
    """k of n as value with Wilson's 95 % interval, as a score has them."""
    low, high = wilson_interval(k, n)
    return {"value": k / n, "low": min(low, k / n), "high": max(high, k / n), "n": n}


def write(target: Target, asked: Asked, scores: Sequence[dict]) -> Path:
    """Write both files; returns that of the scores. Raises DataError for scores that are none."""
    path = PROBES / asked.suite / f"{target.key}.json"
    ledger.write(path, target.key, scores)
    write_atomically(path.with_suffix(".asked.json"), json.dumps(asdict(asked), indent=1, sort_keys=True) + "\n")
    return path


def read(path: Path) -> tuple[Asked, Ledger]:
    """Both files of a suite's run, by that of the scores. Raises DataError, naming the file."""
    beside = path.with_suffix(".asked.json")
    try:
        asked = Asked(**json.loads(beside.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DataError(f"{beside} is missing or damaged: run `ajuste probe {path.parent.name}` again") from None
    return asked, ledger.read(path)


def every(folder: Path = PROBES) -> list[tuple[Asked, Ledger]]:
    """All runs that left scores, by suite and model."""
    paths = sorted(path for path in folder.glob("*/*.json") if not path.name.endswith(".asked.json"))
    return [read(path) for path in paths]


def of_weights(sha256: str, folder: Path = PROBES) -> list[tuple[Asked, Ledger]]:
    """Those that are of these very weights."""
    return [found for found in every(folder) if found[0].sha256 == sha256]
