"""What decides the arithmetic of a stage's process, set before any library reads it.

    python -m tasks.classify.lora     imports package `tasks` first, which calls pin(): so it holds for `ajuste run`,
                                      `dvc repro` and a stage that is started by hand

Always: OMP_NUM_THREADS = compute.threads, and threads that wait for each other spin only briefly. For long, as is
libgomp's default, a step beside other work is several times slower (10.4 steps a second on quiet cores, 3.5 beside a
neighbour, against 9.8 and 4.8); not at all, it is slower on quiet ones (8.5).

With `compute.portable`: every library takes the one kernel that all x86-64 processors have, so that they all give the
same bytes, several times slower. Who chooses by the processor, and what is told to it:

    torch's own kernels    ATEN_CPU_CAPABILITY=default: plain C++ without AVX2 or AVX512
    MKL                    MKL_CBWR=COMPATIBLE: matrix products, exp, log, tanh, erf
    oneDNN                 ONEDNN_MAX_CPU_ISA=SSE41: GELU; products of float32 stay float32
    NumPy, its OpenBLAS    NPY_DISABLE_CPU_FEATURES, OPENBLAS_CORETYPE
    Arrow                  ARROW_USER_SIMD_LEVEL=NONE
    the C library's exp, log, pow, sin     GLIBC_TUNABLES without FMA and AVX2; read when a process starts, so the stage
                                           starts itself anew with it

One thing no setting reaches: MKL's square root begins with the processor's own estimate of 1/sqrt(x), whose bits makers
choose as they like, and Adam takes it of every weight. `exact_roots` replaces it by the correctly rounded one.
docs/reproducibility.md says what was shown of this, and what was not.
"""

import os
import sys
import warnings
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import read_yaml

SPINS = "2000"
HWCAPS = "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX2_Usable,-FMA_Usable,-FMA4_Usable"  # the names before glibc 2.33 too
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Prescott",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_USER_SIMD_LEVEL": "NONE",
}


def environment(threads: int, portable: bool) -> dict[str, str]:
    """The variables that a stage's process needs; a GOMP_SPINCOUNT and tunables of glibc that are set already stay."""
    found = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS)}
    if not portable:
        return found
    others = [part for part in os.environ.get("GLIBC_TUNABLES", "").split(":") if part and "cpu.hwcaps" not in part]
    return {**found, **PORTABLE, "GLIBC_TUNABLES": ":".join([*others, HWCAPS])}


def pin() -> None:
    """Give this process its environment, if `python -m` is about to run a module of the package that is imported now.

    Python calls a program "-m" for as long as it looks for it; a package that a test or a command imports finds
    another name there, and nothing is done. A params.yaml that cannot be read is left to `stage.start`, which says so.
    """
    if sys.argv[0] != "-m":
        return
    try:
        compute = read_yaml(Path("params.yaml")).get("compute") or {}
    except UsageError:
        return
    before = os.environ.get("GLIBC_TUNABLES")
    os.environ.update(environment(compute.get("threads", 1), compute.get("portable") is True))
    if os.environ.get("GLIBC_TUNABLES") != before:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def exact_roots() -> None:
    """Let torch.sqrt on the CPU be the correctly rounded square root (IEEE 754), the same on every processor.

    `x ** 0.5`, log10, atan, asin and tan of MKL begin with such an estimate too; no stage computes with them.
    """
    import numpy as np
    import torch

    if _REPLACED:
        return

    def sqrt(x: torch.Tensor) -> torch.Tensor:
        real = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
        root = torch.from_numpy(np.asarray(np.sqrt(real.detach().numpy())))
        return root.to(x.dtype) if x.is_floating_point() else root

    def sqrt_(x: torch.Tensor) -> torch.Tensor:
        return x.copy_(sqrt(x))

    def sqrt_out(x: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        return out.resize_(x.shape).copy_(sqrt(x))

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"[\s\S]*Overriding a previously registered kernel")
        for name, kernel in (("sqrt", sqrt), ("sqrt_", sqrt_), ("sqrt.out", sqrt_out)):
            library.impl(name, kernel, "CPU", allow_override=True)
    _REPLACED.append(library)  # it ends with its object


_REPLACED: list = []
