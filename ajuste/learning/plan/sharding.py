"""Several GPUs: what each holds when parts of the state are cut over N of them (ZeRO; PyTorch's FSDP is its stage 3).

    none     16 P                          every GPU holds all
    1        4 P + 12 P / N                optimiser: master copy, m and v
    2        2 P + 14 P / N                ... and gradients
    3        16 P / N                      ... and weights

Mixed-precision Adam, 16 bytes a parameter, before activations. Source: ZeRO (Rajbhandari et al., 2020), figure 1: P =
7.5e9 on 64 GPUs takes 120, 31.4, 16.6 and 1.9 GB.
"""

STAGES = ("none", "1", "2", "3")


def zero(P: float, N: int) -> dict[str, float]:
    """Bytes of one GPU by stage. Raises ValueError for less than one GPU."""
    if N < 1:
        raise ValueError(f"{N} GPUs hold nothing: name one or more")
    return {"none": 16 * P, "1": 4 * P + 12 * P / N, "2": 2 * P + 14 * P / N, "3": 16 * P / N}
