"""A registered version, as every reader of the registry has it; ajuste/tracking/registry/registry.py finds them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Version:
    """A registered version. `path` is its local model folder, None if it was not asked for (see `resolve`)."""

    name: str
    version: str
    alias: str | None
    path: Path | None
    tags: dict[str, str]
    run_id: str | None
    aliases: tuple[str, ...] = ()
    created: int = 0  # milliseconds since 1970
