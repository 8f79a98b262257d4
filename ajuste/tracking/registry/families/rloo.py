"""Assistants by RLOO, from artifacts/*/rloo: each made from the SFT version that its tag `base_version` names.

What is said of them is said of every method of groups (grpo.py).
"""

from ajuste.tracking.registry.families.grpo import grouped

RLOO = grouped("rloo", "RLOO", "trained on groups of its own responses, each against the mean of the others")
