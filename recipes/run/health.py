"""What all ranks must know of each step: are its numbers finite, has one been asked to stop.

One reduction of three numbers over all ranks, launched at the end of the last backward pass. The
device does not wait for the host, nor the host for the device: the host reads the result a step
later, or earlier where it waits anyway.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True)
class StepData:
    """What a step is trained on."""

    step: int
    first_row: int
    """Of the step's global batch, in the packed data."""

    documents: list[str]
    """Names of the documents in this rank's part of it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one step; equal on all ranks but for `data.documents` and `is_finite_here`."""

    data: StepData
    is_loss_finite: bool
    is_gradient_finite: bool
    is_finite_here: tuple[bool, bool]
    """Loss and gradient of this rank alone."""

    should_stop: bool
    """Whether a rank has been asked to stop."""

    @property
    def is_finite(self) -> bool:
        return self.is_loss_finite and self.is_gradient_finite


class StepHealth:
    """Judges one step after the other: `add` each loss, `send` once, `read` later."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device)
        is_asynchronous = device.type != "cpu"
        # [loss, squared gradient norm, stop] of all ranks, [loss, squared norm] of this one.
        self._on_host_5 = torch.empty(5, pin_memory=is_asynchronous)
        self._is_copied = torch.Event(device) if is_asynchronous else None
        self._sent: StepData | None = None

    def add(self, loss: torch.Tensor) -> None:
        """The loss of one micro-batch; a pipeline stage that has none gives any finite number."""
        self._loss += _local(loss.detach()).sum()

    def send(
        self, data: StepData, parameters: Iterable[torch.Tensor], *, stop: bool
    ) -> torch.Tensor:
        """Start to agree on a step, whose gradients are complete and not yet clipped.

        Returns a float32 scalar on the device, 1 if a number is not finite and 0 otherwise.
        """
        assert self._sent is None, "read the step before"
        grads = [_local(p.grad) for p in parameters if p.grad is not None]
        # Sums of squares: the sum over ranks overflows where the total norm does.
        norm_sq = torch.nn.utils.get_total_norm(grads).to(self._loss).square()
        own_2 = torch.stack([self._loss, norm_sq])
        all_3 = torch.cat([own_2, own_2.new_full((1,), float(stop))])
        dist.all_reduce(all_3)
        self._on_host_5.copy_(torch.cat([all_3, own_2]), non_blocking=True)
        if self._is_copied is not None:
            self._is_copied.record()
        self._sent = data
        self._loss.zero_()
        return 1 - torch.isfinite(all_3[:2]).all().float()

    def read(self) -> Verdict | None:
        """The verdict on the step last sent; None if it was read before."""
        if self._sent is None:
            return None
        if self._is_copied is not None:
            self._is_copied.synchronize()
        loss, grad, stop, own_loss, own_grad = self._on_host_5
        data, self._sent = self._sent, None
        return Verdict(
            data=data,
            is_loss_finite=bool(loss.isfinite()),
            is_gradient_finite=bool(grad.isfinite()),
            is_finite_here=(bool(own_loss.isfinite()), bool(own_grad.isfinite())),
            should_stop=bool(stop),
        )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part; no gradient flows through it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
