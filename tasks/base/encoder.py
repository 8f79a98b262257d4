"""Stage `base_encoder`: a pretrained encoder in artifacts/base/encoder, in one clean form: tasks/base/common.py.

Weights in float32; what the checkpoint has beyond the bare encoder (a masked-word head) is left out.

Run it: `python -m tasks.base.encoder`, or `dvc repro base_encoder`.
"""

import sys
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute
from ajuste.core.stage import start
from tasks.base.common import BaseConfig, card, find, load_model, load_tokenizer, save, sha256


class EncoderConfig(BaseConfig):
    """Section `base.encoder`."""


def encoder(config: EncoderConfig, compute: Compute, out: Path) -> dict:
    """Write the base to the folder `out` and return what base.json says.

    Raises UsageError if the source is missing or holds no model that transformers can load as it is.
    """
    import torch
    from transformers import AutoModel

    torch.manual_seed(compute.seed)  # weights that the checkpoint lacks (a pooler, say) are drawn the same way always
    with find(config.source) as found:
        model, loading = load_model(AutoModel, found, config.source)
        tokenizer = load_tokenizer(found.path, config.source)
    missing = sorted(loading["missing_keys"])
    if missing:
        print(f"base: {len(missing)} weights are not in the checkpoint and start random: {', '.join(missing[:4])}",
              file=sys.stderr)  # fmt: skip
    if tokenizer.pad_token_id is None:
        raise UsageError(f"base `{config.source}`: its tokenizer has no padding token, which batches of rows need")
    save(model, tokenizer, config.source, out)
    return card(out, {"source": found.source, "id": found.name, "sha256": sha256(out / "model.safetensors")})


def main() -> None:
    with start("base_encoder", EncoderConfig) as stage:
        encoder(stage.config, stage.compute, Path("artifacts/base/encoder"))


if __name__ == "__main__":
    main()
