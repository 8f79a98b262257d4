"""The lecture's exercises: what it takes to fine-tune a model of P parameters, before activations, by both conventions.

    16 bytes a parameter      ZeRO's: 2 weights + 2 gradients + 4 master copy + 4 m + 4 v. GPT-3: 2.80 TB
    8 bytes                   16 bits throughout: 2 weights + 2 gradients + 2 m + 2 v. GPT-3: 1.40 TB
    6.9 bytes                 what the LoRA paper printed for GPT-3: 1.2 TB, and 350 GB with LoRA

They differ in what stands beside the 16-bit weights. The first keeps a float32 master copy and float32 moments, 12 of
its 16 bytes, as mixed precision needs them for small steps. The paper does not say what its 1.2 TB hold: they lie
between 6 bytes (weights and 16-bit moments, 1.05 TB) and 8 (gradients too), so neither master copy nor float32 moments
are in them. Its 350 GB are the weights alone, 2 bytes each; an adapter's own 16 bytes are 0.3 GB at r = 4.
"""

from ajuste.learning.memory_plan import needs
from ajuste.learning.plan.parts import Part

PAPER = 1.2e12  # LoRA (Hu et al., 2021), section 4.2
CONVENTIONS = {
    "full, mixed": "16 P = 2 weights + 2 gradients + 4 master + 4 m + 4 v (ZeRO)",
    "full, 16 bits": "8 P = 2 weights + 2 gradients + 2 m + 2 v",
    "LoRA": "2 P + 16 a",
    "QLoRA (NF4)": "4.127 bits x P / 8 + 16 a",
}


def rows(P: float, a: float) -> list[Part]:
    """Each method's bytes with its formula."""
    return [Part(need.method, need.total, CONVENTIONS[need.method]) for need in needs(P, a)]


def paper(P: float) -> str:
    """The LoRA paper's figures beside these, for GPT-3; empty for another size."""
    if not 1.7e11 < P < 1.8e11:
        return ""
    return (
        f"The LoRA paper printed 1.2 TB (full) and 350 GB (LoRA): {PAPER / P:.1f} bytes a parameter and 2. Mixed "
        "precision takes 16, since it keeps a float32 master copy and float32 moments (12 bytes); 16 bits throughout "
        "take 6 without gradients (1.05 TB) and 8 with them (1.40 TB). The paper does not say what its 1.2 TB hold."
    )
