"""What a plan is made of: bytes with a name, the formula that they come from, and the phase in which they are there.

    total = sum of what is always there + the largest of the phases             load, step, update, rollout, after

Two phases are never there at once: activations are gone when the optimiser steps, the cache of the sampler when the
policy learns. Torch is not needed: a plan is made before anything is started. 1 GB is 10^9 bytes.
"""

from collections.abc import Iterable
from typing import NamedTuple

ALWAYS = "always"


class Part(NamedTuple):
    """Bytes of one thing. formula: in the letters of architecture.py. when: ALWAYS, or a phase's name."""

    name: str
    bytes: float
    formula: str
    when: str = ALWAYS


class Plan(NamedTuple):
    """All parts of one training. about: in a line, what is planned."""

    about: str
    parts: tuple[Part, ...]

    @property
    def phases(self) -> dict[str, float]:
        """Bytes of each phase beside what is always there."""
        found: dict[str, float] = {}
        for part in self.parts:
            if part.when != ALWAYS:
                found[part.when] = found.get(part.when, 0.0) + part.bytes
        return found

    @property
    def peak(self) -> str:
        """The phase that needs most, ALWAYS where there is none."""
        phases = self.phases
        return max(phases, key=phases.get) if phases else ALWAYS

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return self.of([ALWAYS]) + max(self.phases.values(), default=0.0)

    def of(self, phases: Iterable[str]) -> float:
        """Bytes of the parts of these phases together."""
        return sum(part.bytes for part in self.parts if part.when in phases)

    def without(self, *phases: str) -> "Plan":
        """The same plan as far as these phases are not reached."""
        return self._replace(parts=tuple(part for part in self.parts if part.when not in phases))


UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6))


def size(count: float) -> str:
    """Bytes as a person reads them; 1 GB is 10^9."""
    for unit, factor in UNITS:
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count:,.0f} B"
