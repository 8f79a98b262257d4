"""policy.yaml: what is done with results. params.yaml says how they are made; nothing here changes a byte of an out.

    gate     when a challenger becomes champion    ajuste/judging/verdicts/gate.py
    drift    when requests are other than the training data, and ask for a new run    ajuste/judging/verdicts/drift.py
    filters  what `ajuste serve` refuses or masks    ajuste/rows/filters/config.py
"""

from pathlib import Path
from typing import TypeVar

from ajuste.core.errors import UsageError
from ajuste.core.params import Config, read_yaml, typed

POLICY = Path("policy.yaml")
C = TypeVar("C", bound=Config)


def policy(section: str, config_type: type[C], path: Path = POLICY) -> C:
    """A section of policy.yaml. Raises UsageError that names the first wrong key, or a section that is missing."""
    values = read_yaml(path).get(section)
    if values is None:
        raise UsageError(f"{path}: section `{section}` is missing: take it from the project's own policy.yaml")
    try:
        return typed(config_type, values, section)
    except UsageError as error:
        raise UsageError(str(error).replace("params.yaml", str(path), 1)) from None


def check_policy(path: Path = POLICY) -> None:
    """Read every section before anything runs. Raises UsageError for the first fault."""
    from ajuste.judging.verdicts.drift import DriftConfig
    from ajuste.judging.verdicts.gate import GateConfig
    from ajuste.rows.filters.config import FilterConfig

    known = {"gate": GateConfig, "drift": DriftConfig, "filters": FilterConfig}
    if unknown := sorted(read_yaml(path).keys() - known):
        raise UsageError(f"{path}: unknown section `{unknown[0]}`: known sections are {', '.join(sorted(known))}")
    for section, config_type in known.items():
        policy(section, config_type, path)
