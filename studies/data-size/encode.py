"""Study data-size, step 1: all training rows of the default run's sources as token ids, and their cached features.

Run by `ajuste study data-size`. Writes artifacts/studies/data-size/encoded and .../features.
"""

from pathlib import Path

from tasks._params import Compute, read_yaml, section, typed
from tasks.encode import EncodeConfig, encode
from tasks.features import FeaturesConfig, features

OUT = Path("artifacts/studies/data-size")


def main() -> None:
    params = read_yaml(Path("params.yaml"))
    compute = typed(Compute, params["compute"], "compute")
    encoding = {**section(params, "encode", "reviews"), "rows": {"train": None, "validation": None, "test": None}}
    base = Path("artifacts/base/encoder")
    encode(
        typed(EncodeConfig, encoding, "encode.reviews"),
        compute,
        Path("artifacts/validated/reviews"),
        base,
        OUT / "encoded",
    )
    reading = typed(FeaturesConfig, section(params, "features", "reviews"), "features.reviews")
    features(reading, compute, OUT / "encoded", base, OUT / "features")


if __name__ == "__main__":
    main()
