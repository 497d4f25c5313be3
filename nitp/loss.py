"""NITPLoss: cross entropy and NITP together, chunk by chunk over the sequence.

Owns the chunking and how the two gradients meet. The equations are in objective.py; cross entropy
is TorchTitan's ChunkedLossWrapper, unchanged.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import nn
from torchtitan.config import CompileConfig
from torchtitan.tools.logging import logger

from nitp import objective
from nitp._torchtitan import GradAccumulator
from nitp.config import NITPConfig
from nitp.decoder import NITPOutput
from nitp.fsdp import hold_stage, one_projector_sync
from nitp.measured import MeasuredLoss
from nitp.pairs import PAIR_WEIGHT
from nitp.projector import PROJECTOR_NAME
from nitp.sequence import SequenceShards


class Sum(IntEnum):
    """Entries of NITPLoss.sums. Each is a plain sum, so ranks and micro-batches add up."""

    NTP = 0  # cross entropy / global number of valid labels
    NTP_GRAD_SQ = 1  # squared norm of dL_NTP / dh
    NITP = 2  # sum of pair weight * distance, without lambda
    COSINE = 3  # sum of pair weight * cosine
    WEIGHT = 4  # sum of pair weights: 1 over a training step with pairs; pairs in validation
    NITP_GRAD_SQ = 5  # squared norm of lambda dL_NITP / d(its inputs)


class _Attached(NamedTuple):
    """What the loss works on; the trainer has it after the loss."""

    decoder: nn.Module
    projector: nn.Module | None
    nitp: NITPConfig
    shards: SequenceShards
    is_pipelined: bool
    sums: torch.Tensor
    trainer_name: str
    """For messages."""


class NITPLoss(MeasuredLoss):
    """L_total = L_NTP + lambda * L_NITP (Eq. 4) on the output of an NITP decoder.

    Call: (tuple NITPOutput, labels_BL, global_valid_tokens) -> (scalar, {}). The scalar is this
    rank's share: its sum over ranks and micro-batches is the loss of the global batch. L_NTP is
    divided by `global_valid_tokens`; L_NITP carries its normaliser in pair_weight_BL. Neither the
    [B, L, V] logits nor the projector's [B, L, 4d] activations exist whole: each chunk runs forward
    and backward before the next, and one gradient per carrier enters the decoder.

    Without grad (validation) the scalar is cross entropy alone; NITP goes to `sums` only.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(MeasuredLoss.Config):
        is_given_whole: bool = False
        """Whether the configuration had `loss_fn` alone, which it gets back without NITP."""

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        super().__init__(config, compile_config=compile_config)
        self._alignment_sum = objective.alignment_sum
        self._maybe_compile_alignment(compile_config)
        self._attached: _Attached | None = None
        self._term: _Term | None = None
        self.is_reached = False
        """Whether a step has come by with pair weights."""
        self._has_warned = False

    def _maybe_compile_alignment(self, config: CompileConfig | None) -> None:
        if config is not None and config.enable and "loss" in config.components:
            self._alignment_sum = torch.compile(objective.alignment_sum, backend=config.backend)

    def attach(
        self,
        decoder: nn.Module,
        nitp: NITPConfig,
        shards: SequenceShards,
        device: torch.device,
        *,
        is_pipelined: bool,
        trainer_name: str,
    ) -> None:
        """Take the (parallelised) decoder that owns the projector, the run's options, and how
        sequences are sharded.

        TorchTitan builds the loss before the model, so the decoder cannot come to the constructor;
        the options stand in the trainer's configuration. Nothing else of the loss works before this
        call: RuntimeError.
        """
        # Allocated once: under CUDA graphs only in-place updates reach a replayed step. A buffer of
        # the decoder: pipelines infer shapes by running a stage and its loss once more, after which
        # they restore the stage's buffers.
        sums = torch.zeros(len(Sum), device=device, dtype=torch.float32)
        decoder.register_buffer("nitp_sums", sums, persistent=False)
        projector = getattr(decoder, PROJECTOR_NAME)
        self._attached = _Attached(
            decoder, projector, nitp, shards, is_pipelined, sums, trainer_name
        )

    @property
    def _run(self) -> _Attached:
        if self._attached is None:
            raise RuntimeError("call NITPLoss.attach before the loss is used, as NITPTrainer does")
        return self._attached

    @property
    def nitp(self) -> NITPConfig:
        """The run's options."""
        return self._run.nitp

    @property
    def sums(self) -> torch.Tensor:
        """What has been added up since it was last zeroed, float32 [len(Sum)], in place."""
        return self._run.sums

    def __call__(
        self,
        pred: tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **loss_inputs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if isinstance(pred, torch.Tensor):
            return self._run_without_pairs(pred, labels, global_valid_tokens, **loss_inputs)
        self.is_reached = True
        out = NITPOutput(*pred)
        run_term = self._run_alignment if self.nitp.uses_target else self._run_token_cosine
        assert self.lm_head is not None
        is_step = self._run.is_pipelined and out.h_BLD.requires_grad
        with hold_stage(self._run.decoder, self.lm_head) if is_step else nullcontext():
            self._term = run_term(out)
            loss, metrics = super().__call__(out.h_BLD, labels, global_valid_tokens, **loss_inputs)
        self._term = None
        return loss, metrics

    def _run_without_pairs(
        self, h_BLD: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross entropy alone, for a validator that calls the model without pair weights: one that
        does not go through NITPValidator.post_dataloading_process."""
        if h_BLD.requires_grad:
            raise ValueError(
                f"{self._run.trainer_name} calls its model without {PAIR_WEIGHT}, so NITP would "
                "not train. Its train_step must call forward_backward_step with the batches that "
                "it is given, and that must call post_dataloading_process and pass on what it "
                "returns."
            )
        if not self._has_warned:
            self._has_warned = True
            logger.warning(f"Validation has no NITP figures: it gives the model no {PAIR_WEIGHT}.")
        return super().__call__(h_BLD, *args, **kwargs)

    # ------------------------------------------------------------------------ L_NITP

    def _run_alignment(self, out: NITPOutput) -> "_Term":
        """lambda * L_NITP of these rows, run to its gradients, and its entries of `sums`."""
        run = self._run
        shards = run.shards
        is_training = out.h_BLD.requires_grad
        moves_target = is_training and out.z_BLD.requires_grad
        # Under tensor parallelism each rank projects its own slice of the sequence.
        source_BLD = shards.take_slice(out.source_BLD)
        weight_BL = shards.take_slice(out.pair_weight_BL)
        target_BLD = shards.shift_targets(out.z_BLD.detach(), self.nitp.shift)
        if self.meter is not None:
            self.meter.add_targets(target_BLD, weight_BL != 0)

        grad_source = self._grad_accumulator(source_BLD) if is_training else None
        grad_target = self._grad_accumulator(target_BLD) if moves_target else None
        values, cosines = [], []
        with one_projector_sync(
            run.decoder,
            run.projector,
            is_training=is_training,
            is_pipelined=run.is_pipelined,
        ) as before_last_chunk:
            for index in range(self.num_chunks):
                if index == self.num_chunks - 1:
                    before_last_chunk()
                source, target, weight = (
                    x.chunk(self.num_chunks, dim=1)[index].detach()
                    for x in (source_BLD, target_BLD, weight_BL)
                )
                source.requires_grad_(is_training)
                target.requires_grad_(moves_target)
                value, cosine = self._align(source, target, weight)
                values.append(value.detach())
                cosines.append(cosine)
                if grad_source is not None:
                    (self.nitp.weight * value).backward()
                    grad_source.add(source.grad)
                if grad_target is not None:
                    grad_target.add(target.grad)

        grads, grad_sq = [], values[0].new_zeros(())
        if grad_source is not None:
            grad_BLD = grad_source.result()
            grad_sq = grad_BLD.square().sum()
            grads.append((out.source_BLD, shards.embed_slice(grad_BLD)))
        if grad_target is not None:
            grad_BLD = _unshift(grad_target.result(), self.nitp.shift)
            grad_sq = grad_sq + grad_BLD.square().sum()
            grads.append((out.z_BLD, grad_BLD))
        entries = [torch.stack(values).sum(), torch.stack(cosines).sum(), weight_BL.sum(), grad_sq]
        return self._close_term(entries, grads)

    def _close_term(
        self, entries: list[torch.Tensor], grads: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> "_Term":
        """Sum [L_NITP, cosine, weight, squared gradient] over the slices and note them."""
        entries_4 = self._run.shards.sum_over_slices(torch.stack(entries))
        self.sums[Sum.NITP : Sum.NITP_GRAD_SQ + 1] += entries_4
        return _Term(self.nitp.weight * entries_4[0], grads)

    def _align(
        self, source_BLD: torch.Tensor, target_BLD: torch.Tensor, weight_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk: (weighted sum of distances, weighted sum of cosines without grad)."""
        projector = self._run.projector
        pred_BLD = source_BLD if projector is None else projector(source_BLD)
        pred_TD, target_TD = pred_BLD.flatten(0, 1), target_BLD.flatten(0, 1)
        weight_T = weight_BL.flatten()
        value = self._alignment_sum(pred_TD, target_TD, weight_T, self.nitp.loss)
        with torch.no_grad():
            distance = value
            if self.nitp.loss != "cosine":
                distance = self._alignment_sum(pred_TD, target_TD, weight_T, "cosine")
            return value, weight_T.sum() - distance

    def _run_token_cosine(self, out: NITPOutput) -> "_Term":
        """The ablation without target. Pairs span whole documents, so it runs in one piece."""
        source_BLD, weight_BL, positions_BL = out.source_BLD, out.pair_weight_BL, out.positions_BL
        h_BLD = source_BLD.detach().float().requires_grad_(source_BLD.requires_grad)
        value = objective.token_cosine_sum(h_BLD, positions_BL, weight_BL)
        num_others_BL = objective.token_cosine_pair_counts(positions_BL, weight_BL != 0)
        weight = (weight_BL * num_others_BL).sum()
        grads, grad_sq = [], value.new_zeros(())
        if source_BLD.requires_grad:
            (grad_BLD,) = torch.autograd.grad(self.nitp.weight * value, h_BLD)
            grad_sq = grad_BLD.square().sum()
            grads.append((source_BLD, grad_BLD))
        return self._close_term([value.detach(), value.detach(), weight, grad_sq], grads)

    def _grad_accumulator(self, reference: torch.Tensor) -> GradAccumulator:
        return GradAccumulator(reference, num_chunks=self.num_chunks, dtype=torch.float32)

    # --------------------------------------------------------------- L_NTP + lambda L_NITP

    def _gradient_backprop(
        self,
        hidden_states: torch.Tensor,
        accumulated_grad: torch.Tensor,
        total_loss: torch.Tensor,
        lm_head: nn.Module,
        fsdp_enabled: bool,
    ) -> torch.Tensor:
        """Join both terms in one autograd node (ChunkedLossWrapper calls this in training).

        Private, but its docstring invites it: "Subclasses override to swap in a different autograd
        Function". Beside TorchTitan's own node NITP's gradient would be rounded to the activation
        dtype by itself, and autograd would round the sum again; one rounding is better than two.
        """
        assert self._term is not None
        self.sums[Sum.NTP] += total_loss
        self.sums[Sum.NTP_GRAD_SQ] += accumulated_grad.float().square().sum()
        grads = {hidden_states: accumulated_grad}
        for carrier, grad in self._term.grads:
            if carrier in grads:
                # Added in float32, before the one rounding to the activation dtype.
                grad = grads[carrier].float() + grad
            grads[carrier] = grad.to(carrier.dtype)
        loss = total_loss + self._term.value
        return _InjectGradients.apply(loss, len(grads), *grads.keys(), *grads.values())


class _Term(NamedTuple):
    """A term of the loss whose backward down to the decoder's outputs has already run."""

    value: torch.Tensor
    """This rank's share of the term, detached float32 scalar."""

    grads: list[tuple[torch.Tensor, torch.Tensor]]
    """(tensor of the decoder's graph, float32 gradient of the term with respect to it)."""


def _unshift(grad_BLD: torch.Tensor, shift: int) -> torch.Tensor:
    """Gradient of z from the gradient of shift_targets(z)."""
    z_BLD = torch.zeros_like(grad_BLD, requires_grad=True)
    with torch.enable_grad():
        shifted_BLD = objective.shift_targets(z_BLD, shift)
    return torch.autograd.grad(shifted_BLD, z_BLD, grad_BLD)[0]


class _InjectGradients(torch.autograd.Function):
    """The loss value, whose backward hands each carrier the gradient computed before.

    Ignores the incoming gradient, as TorchTitan's own bridge does: call backward on the loss
    itself, not on a multiple of it.
    """

    @staticmethod
    def forward(
        ctx: Any, loss: torch.Tensor, num_carriers: int, *tensors: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(*tensors[num_carriers:])
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        grads = ctx.saved_tensors
        return (None, None, *grads, *(None for _ in grads))
