"""The last stage of a method that a study makes: the assistant on the three H, as the default run measures its own.

    align("grpo", "rloo")        stage alignment_rloo of studies/grpo/dvc.yaml; scores: tasks/alignment/scores.py
"""

from pathlib import Path

from ajuste.core.params import read_yaml, section
from studies.stages import start
from tasks.alignment.scores import AlignmentConfig, run


def align(study: str, method: str) -> None:
    """Measure artifacts/merged/<method> and write artifacts/alignment/<method>."""
    values = section(read_yaml(Path("params.yaml")), "alignment", "")
    with start(study, f"alignment_{method}", AlignmentConfig, values) as stage:
        run(stage, method, Path("artifacts/merged") / method)
