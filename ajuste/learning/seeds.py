"""One seed for everything that draws random numbers, so that two runs of the same inputs give the same bytes.

    seed_everything(compute.seed, compute.threads)

Equal bytes are promised for one kind of CPU and one thread count: a sum that is split over another number of threads
is added up in another order, and floating-point addition does not forgive that.
"""

import os
import random

import numpy as np
import torch


def seed_everything(seed: int, threads: int) -> None:
    """Seed Python, NumPy and torch (all devices), fix the CPU threads and ask for deterministic kernels.

    A CUDA operation without a deterministic kernel warns and goes on; on a CPU all that are used here have one.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # with it, torch fills every new tensor with NaN before writing to it: a tenth of a training step, for equal bytes
    torch.utils.deterministic.fill_uninitialized_memory = False
