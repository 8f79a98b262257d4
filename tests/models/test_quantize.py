"""Quantised bases: what they compute, what they are dequantised to, and that an evaluation spoils no gradient."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ajuste.learning.layers import ragged
from ajuste.learning.text.generate import generate
from ajuste.models import decoder, methods, quantize
from tests.made.tiny_decoders import tiny_adapter
from tests.made.tuned import logits, of, pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["qlora", "qlora8"])
def test_gradients_after_an_evaluation_equal_those_before_one(method: str, dtype, encoded: Path, base: Path) -> None:
    rows = pairs(encoded, "train")[:8]
    torch.manual_seed(0)
    model = methods.attach(methods.load_base(base, method, dtype), of(method).settings())
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.05)  # B is no longer zero, so that A learns too
    ragged.attach(model)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model.train()
        ragged.response_loss(model, ragged.collate(rows)).backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    before = gradients()
    packed = {name: p.data.clone() for name, p in model.named_parameters() if not p.requires_grad}
    held_out = ragged.row_losses(model, rows, 300)
    generate(model, [rows[0][0][:5]], 4, [], 0)
    assert all(torch.equal(left, right) for left, right in zip(before, gradients(), strict=True))
    assert all(torch.equal(packed[name], p.data) for name, p in model.named_parameters() if name in packed)
    assert torch.equal(held_out, ragged.row_losses(model, rows, 300))
    assert max(gradient.abs().max() for gradient in before) > 0


@pytest.mark.parametrize(("method", "kind"), methods.QUANTISATION.items())
def test_the_dequantised_base_is_what_the_quantised_one_computes(
    method: str, kind: str, encoded: Path, base: Path, tmp_path: Path
) -> None:
    rows = pairs(encoded)
    quantised, plain = quantize.load(base, kind), quantize.dequantised_base(base, kind)
    assert (logits(quantised, rows) - logits(plain, rows)).abs().max() < 1e-5
    assert (logits(decoder.load_base(base)[0], rows) - logits(plain, rows)).abs().max() > 1e-3  # another model
    # the codes do not depend on the dtype that the base is loaded in
    codes = []
    for dtype in (torch.float32, torch.bfloat16):
        parameters = quantize.load(base, kind, dtype).parameters()
        codes.append([p.data for p in parameters if p.dtype in (torch.uint8, torch.int8)])
    assert len(codes[0]) == 28 and all(torch.equal(a, b) for a, b in zip(*codes, strict=True))
    decoder.save_whole(plain, decoder.load_base(base)[1], tmp_path, {"kind": "decoder"})
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(decoder.load(tmp_path)[0], rows), logits(plain, rows))


def test_nf4_is_the_nearest_of_sixteen_levels_of_each_64_weights(base: Path) -> None:
    """An independent NF4: levels of the paper's table, absolute maximum a block (its 8 bits within 1 %)."""
    levels = torch.tensor(
        [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803,
         0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    )  # fmt: skip
    name = "model.layers.0.mlp.up_proj.weight"
    W0 = load_file(base / "model.safetensors")[name].float().reshape(-1, 64)
    a = W0.abs().amax(1, keepdim=True)
    nearest = levels[((W0 / a)[..., None] - levels).abs().argmin(-1)] * a
    W = dict(quantize.dequantised_base(base, "nf4").named_parameters())[name].reshape(-1, 64)
    assert ((W - nearest).abs() / a).max() < 0.02
    assert (W - W0).abs().max() > 0.01 * a.max()


@pytest.mark.parametrize(("method", "kind"), methods.QUANTISATION.items())
def test_the_weights_of_a_model_with_an_adapter_are_those_of_the_dequantised_base(
    method: str, kind: str, base: Path, tmp_path: Path
) -> None:
    model, _, _ = decoder.load(tiny_adapter(base, tmp_path, method), base)
    found, plain = quantize.dequantised_weights(model), dict(quantize.dequantised_base(base, kind).named_parameters())
    assert len(found) == 28 and all(torch.equal(W, plain[name]) for name, W in found.items())
