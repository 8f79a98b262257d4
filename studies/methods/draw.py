"""Study methods: all methods beside each other, as tables, one paragraph and a picture of reward over KL.

Run by `ajuste study methods`. Writes metrics/methods.json and docs/measured/methods.svg, and the page
docs/measured/methods.md. The page also has what a clock said (.state, studies/methods/shared.py), which differs from
run to run, so it is no out of DVC: an out is the same bytes for the same inputs.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from ajuste.core.figures import rounded, write_json  # noqa: E402
from ajuste.core.home import write_atomically  # noqa: E402
from studies.labelled import run  # noqa: E402
from studies.methods import compare, page, shared  # noqa: E402

METRICS, OUT = Path("metrics"), Path("docs/measured")
LOOK = {  # told apart by all eyes
    "sft": ("#000000", "x"), "best-of-n": ("#228833", "o"), "rejection": ("#cc6677", "s"), "dpo": ("#ddaa33", "D"),
    "ppo": ("#332288", "^"), "grpo": ("#88ccee", "v"), "rloo": ("#aa4499", "P"),
}  # fmt: skip


def draw(found: dict, path: Path) -> None:
    """Gains of gold and proxy over KL: each method's mean with its interval over prompts, its seeds small and pale."""
    matplotlib.rcParams.update({"svg.hashsalt": "methods", "font.size": 11})
    figure, both = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for axes, judge in zip(both, ("gold", "proxy"), strict=True):
        for method, one in found["methods"].items():
            colour, marker = LOOK[method]
            gain, kl = one[judge]["gain"], one["kl"]
            look = {"color": colour, "marker": marker, "linestyle": "none"}
            axes.plot(kl["seeds"], gain["seeds"], markersize=4, alpha=0.45, **look)
            axes.errorbar(
                [kl["value"]], [gain["value"]],
                yerr=[[gain["value"] - gain["low"]], [gain["high"] - gain["value"]]],
                xerr=[[kl["value"] - kl["low"]], [kl["high"] - kl["value"]]],
                markersize=8, capsize=3, label=page.NAMES[method], **look,
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlabel("KL to the SFT model (nats a response)")
        axes.set_ylabel(f"{judge}, gain over the SFT model")
        axes.grid(alpha=0.3)
    both[1].legend(fontsize=9)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    study = shared.read()
    # the figures as they are written, so that a page can be made again from metrics/methods.json
    found = rounded(compare.compared(study, compare.read(study, shared.path_of)))
    costs = {method: [shared.cost_of(method, seed) for seed in study.seeds] for method in study.methods}
    METRICS.mkdir(exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(METRICS / "methods.json", found)
    draw(found, OUT / "methods.svg")
    write_atomically(OUT / "methods.md", page.page(found, costs, study))
    print(page.verdict(found))


if __name__ == "__main__":
    run(main)
