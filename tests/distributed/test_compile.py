"""NITP costs torch.compile no graph break and no recompilation.

Parity of compiled training is in recipes/parity/cells.py.
"""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch._dynamo import register_backend
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.config import CompileConfig
from torchtitan.models.common.linear import Linear

from nitp.config import NITPConfig
from nitp.loss import NITPLoss
from nitp.projector import PROJECTOR_NAME, build_projector_config
from nitp.sequence import SequenceShards
from recipes.parity.world import REPOSITORY
from tests.distributed.cells import MODELS, SMALL

COMPILE = "--compile.enable"  # components model and loss

# ------------------------------------------------------------------------------- graphs

LAYER, PROJECTOR = "model.py:forward", "feed_forward.py:forward"
ALIGNMENT, CROSS_ENTROPY = "objective.py:alignment_sum", "loss.py:cross_entropy_loss"
GRAD_MODE = "GLOBAL_STATE changed: grad_mode"


def count_graphs(model: str, *variants: list[str]) -> list[dict[str, list[str]]]:
    """Graphs of two training steps and a validation. The backend traces but compiles nothing."""
    common = [
        *SMALL,
        COMPILE,
        "--compile.backend=aot_eager",
        "--validation.enable",
        "--validation.steps=1",
        "--metrics.enable_tensorboard=false",
        "--debug.enable_structured_logging=false",
    ]
    runs = [[MODELS[model], common, variant] for variant in variants]
    command = [sys.executable, "-m", "tests.distributed.count_graphs", json.dumps(runs)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", ["dense", pytest.param("moe", marks=pytest.mark.slow)])
def test_nitp_adds_two_graphs_and_breaks_or_recompiles_none(model):
    """The projector and the alignment; all is compiled once more, without grad, for validation."""
    nitp, baseline = count_graphs(model, [], ["--nitp.enable=false"])
    assert nitp["breaks"] == baseline["breaks"] == []
    num_kinds_of_layers = {"dense": 1, "moe": 2}[model]
    assert Counter(baseline["graphs"]) == {LAYER: 2 * num_kinds_of_layers, CROSS_ENTROPY: 2}
    assert Counter(nitp["graphs"]) == Counter(baseline["graphs"]) + Counter(
        {PROJECTOR: 2, ALIGNMENT: 2}
    )
    added = [reason for reason in nitp["recompiled"] if GRAD_MODE in reason]
    assert len(added) == len(nitp["recompiled"]) - 2 * (num_kinds_of_layers - 1)


RUNS: Counter[str] = Counter()


@register_backend
def counting(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]):
    """A compiler that counts how often the graphs it is given run."""
    name = "alignment" if "vector_norm" in graph.code else "cross_entropy"

    def run(*args):
        RUNS[name] += 1
        return graph(*args)

    return run


@pytest.mark.parametrize("components", [["model", "loss"], ["model"]])
def test_the_alignment_of_every_chunk_runs_compiled_where_the_loss_is(components):
    num_chunks, batch, length, dim, vocab_size = 4, 2, 16, 8, 11
    nitp = NITPConfig(target_layer=1, weight=0.5)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    decoder = nn.Module()
    projector = build_projector_config(dim, nitp).build()
    lm_head = Linear.Config(in_features=dim, out_features=vocab_size).build()
    setattr(decoder, PROJECTOR_NAME, projector)
    for param in [*projector.parameters(), *lm_head.parameters()]:
        param.data = draw(*param.shape)
    h_BLD, z_BLD, weight_BL = (draw(batch, length, *s) for s in ((dim,), (dim,), ()))
    labels = torch.randint(vocab_size, (batch, length), generator=generator)
    positions = torch.arange(length).expand(batch, -1)

    def run(config: CompileConfig) -> tuple[torch.Tensor, torch.Tensor]:
        loss = NITPLoss.Config(loss_fn=CrossEntropyLoss.Config(), num_chunks=num_chunks).build(
            compile_config=config
        )
        loss.set_lm_head(lm_head)
        loss.attach(
            decoder,
            nitp,
            SequenceShards(),
            torch.device("cpu"),
            is_pipelined=False,
            trainer_name="Trainer",
        )
        h = h_BLD.clone().requires_grad_()
        value, _ = loss((h, h, z_BLD, weight_BL, positions), labels, torch.tensor(labels.numel()))
        value.backward()
        return value.detach(), h.grad

    expected = run(CompileConfig(enable=False))
    RUNS.clear()
    value, grad = run(CompileConfig(enable=True, components=components, backend="counting"))
    assert (
        {"alignment": num_chunks, "cross_entropy": num_chunks} if "loss" in components else {}
    ) == RUNS
    torch.testing.assert_close((value, grad), expected)
