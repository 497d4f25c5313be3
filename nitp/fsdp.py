"""The loss inside FSDP2's schedule: when P and the decoder are gathered, reduced and resharded.

Every chunk of the loss runs a backward of its own, and each backward ends in FSDP2's root callback,
which takes it for the end of the decoder's step. The context managers here say otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def one_projector_sync(
    decoder: nn.Module, projector: nn.Module | None, *, is_training: bool, is_pipelined: bool
) -> Iterator[Callable[[], None]]:
    """One all-gather and one reduce-scatter of P for all chunks of a micro-batch.

    The whole decoder is told that more backwards follow; P alone synchronises, in the last chunk's
    backward (call the yielded function before it). The decoder's own backward, which follows, waits
    for P's reduction. A pipeline keeps P gathered until the schedule ends the stage's step. Where
    the decoder is sharded by other means than FSDP2, P is a root of its own and waits itself.
    """
    if not isinstance(projector, FSDPModule):
        yield lambda: None
        return
    root = decoder if isinstance(decoder, FSDPModule) else projector

    def before_last_chunk() -> None:
        projector.set_requires_gradient_sync(True, recurse=False)
        projector.set_reshard_after_backward(not is_pipelined, recurse=False)
        projector.set_is_last_backward(root is projector)

    # An explicit unshard leaves no all-gather event behind, which CUDA graph capture refuses.
    projector.unshard()
    if not is_training:
        yield lambda: None
        projector.reshard()
        return
    _set_last_backward(root, False)
    yield before_last_chunk
    _set_last_backward(root, not is_pipelined)


@contextmanager
def hold_stage(decoder: nn.Module, lm_head: nn.Module) -> Iterator[None]:
    """Pipelines: the last stage stays gathered and unreduced through the loss.

    The schedule gathers a stage, runs several micro-batches and reduces at the end; the loss runs
    in between. Schedules that compute weight gradients apart (ZBVZeroBubble) look for the gathered
    weights and silently lose the gradient of any that are not.
    """
    if not isinstance(decoder, FSDPModule):
        yield
        return
    assert isinstance(lm_head, FSDPModule)
    _set_last_backward(decoder, False)
    yield
    # ChunkedLossWrapper leaves its unit, [norm, lm_head], resharded.
    _set_last_backward(decoder, False)
    lm_head.unshard()


def forget_forward(model_parts: list[nn.Module]) -> None:
    """After forward passes without a backward: FSDP2 begins the next pass anew.

    The loss calls its unit, [norm, lm_head], by itself, and FSDP2 takes that for the beginning of a
    pass that only a backward ends. The next forward would then start without ordering its gathers
    behind the work before: if CUDA graphs capture it, they would be left out, which CUDA refuses.
    TorchTitan alone has that too, on two ranks and more without accumulation, as it validates
    after the first step and captures the second.
    """
    for part in model_parts:
        if isinstance(part, FSDPModule):
            part.reset_iter_state()


def _set_last_backward(module: FSDPModule, is_last: bool) -> None:
    """Whether the next backward through `module` ends its step: reduces, reshards and waits."""
    module.set_is_last_backward(is_last)
    module.set_requires_gradient_sync(is_last)
    module.set_reshard_after_backward(is_last)
