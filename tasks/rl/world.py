"""The processes of a run, over accelerate: sums and maxima over all of them, gradients added up.

A run of a single process calls the same functions and needs no branch of its own: they return what they are given.
"""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather
from torch import Tensor, nn


class World:
    """rank, processes, and what is the same on all of them."""

    def __init__(self, device: torch.device) -> None:
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor added up over all processes, on the CPU."""
        if self.processes == 1:
            return tensor.cpu()
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum").cpu()

    def totals(self, numbers: dict[str, float]) -> dict[str, float]:
        """Each number added up over all processes."""
        summed = self.sum(torch.tensor(list(numbers.values()), dtype=torch.float64)).tolist()
        return dict(zip(numbers, summed, strict=True))

    def largest(self, number: float | Tensor) -> float:
        """The largest of all processes."""
        return max(self.stacked(torch.as_tensor(number, dtype=torch.float64)).tolist())

    def same(self, thing: Any) -> Any:
        """What the first process gives, in all of them; anything that can be pickled."""
        return broadcast_object_list([thing])[0]

    def stacked(self, tensor: Tensor) -> Tensor:
        """[processes, ...] on the CPU, by rank."""
        return gather(tensor[None].to(self.accelerator.device)).cpu()

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Each process has the gradient of its rows' part of a sum; afterwards all have that of the whole sum."""
        if self.processes == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = self.accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]), "sum")
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()
