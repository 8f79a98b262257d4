"""Study rlaif: a judge labels the samples, artifacts/studies/rlaif/pairs/<JUDGE>. `python -m studies.rlaif.pairs JUDGE`

A judge that its card refuses labels nothing: pairs.json then says why, and no training uses it.
"""

import sys

from ajuste.core.errors import DataError
from ajuste.core.figures import write_json
from studies.rlaif.shared import OUT, Study, run
from tasks.judge.pairs import PairsConfig, admitted, label_pairs


def main(name: str) -> None:
    study = Study()
    card, out = OUT / "cards" / name / "card.json", OUT / "pairs" / name
    try:
        admitted(card)
    except DataError as refused:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "pairs.json", {"judge": name, "refused": str(refused)})
        print(refused)
        return
    config = study.config(PairsConfig, "pairs")
    found = label_pairs(
        config, study.compute, name, study.judge(name), study.words(), card, OUT / "samples/samples.parquet", out
    )
    print(f"judge `{name}`: {found['kept']} of {found['asked']} pairs kept, {found['inconsistent']} inconsistent")


if __name__ == "__main__":
    run(f"pairs_{sys.argv[1]}", lambda: main(sys.argv[1]))
