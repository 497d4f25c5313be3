"""The cells of the parity matrix: name -> technique, ranks and how near it must come.

A cell trains the standard problem (problem.py), and what it adds to it, under its layout; its
reference trains the same as one process, or as TorchTitan does without NITP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal, NamedTuple

from recipes.parity.problem import MODELS
from recipes.parity.tolerance import BFLOAT16, COMPILED, CUDA, EXACT, FLOAT8, FLOAT32, Tolerance
from recipes.parity.world import Device, Layout


@dataclass(frozen=True)
class Cell:
    """One technique or combination."""

    ranks: int
    overrides: Sequence[str] = ()
    """How it is computed: parallelisms and memory techniques."""

    problem: Sequence[str] = ()
    """What is computed beyond the standard problem; the reference computes it too."""

    models: Sequence[str] = tuple(MODELS)
    tolerance: Tolerance = FLOAT32
    num_steps: int = 3
    validate: bool = True
    """Whether to compare the validation losses after the last step too."""

    then: Sequence[Layout] = ()
    """Layouts that go on from the checkpoint of the one before, for equal shares of the steps."""

    against: Literal["one process", "torchtitan"] = "one process"
    """The reference: one process, or TorchTitan's plain recipe under the same layout."""

    not_on_cpu: str = ""
    """Why the cell cannot run there, if so."""

    slow: bool = False
    """Not in the default test suite."""

    @property
    def legs(self) -> list[Layout]:
        return [(self.ranks, self.overrides), *self.then]

    @property
    def max_ranks(self) -> int:
        return max(ranks for ranks, _ in self.legs)

    def tolerance_on(self, device: Device) -> Tolerance:
        """The cell's own, or CUDA's where that is wider. Exact cells are exact everywhere."""
        keeps_own = self.tolerance == EXACT or self.tolerance.loss > CUDA.loss
        return self.tolerance if device == "cpu" or keeps_own else CUDA


BATCH = "--training.local_batch_size={}"
HSDP = "--parallelism.data_parallel_replicate_degree={}"
TP, CP = "--parallelism.tensor_parallel_degree={}", "--parallelism.context_parallel_degree={}"
NO_SP = "--parallelism.enable_sequence_parallel=false"
IN_ORDER = "--parallelism.context_parallel_load_balancer=none"
RESHARD = "--parallelism.fsdp_reshard_after_forward={}"
PARTIAL_DTENSOR = "--parallelism.spmd_backend=partial_dtensor"
RECOMPUTE = "--activation_checkpoint.mode={}"
EP = "--parallelism.expert_parallel_degree={}"
PP = "--parallelism.pipeline_parallel_degree={}"
SCHEDULE = "--parallelism.pipeline_parallel_schedule={}"
# The standard target, k = 1, is on a stage between the first and the last one.
ON_FIRST_STAGE, ON_LAST_STAGE = "--nitp.target_layer=0", "--nitp.target_layer=3"
NO_VALIDATION = "--validation.enable=false"  # PyTorch cannot run ZBVZeroBubble forward only
LONG = "--training.seq_len=512"  # CP needs blocks of 128 tokens on each rank
TWICE = ["--training.global_batch_size=16"]  # two batches of four rows on two pipelines
# The embedding's rows fall into uneven shards on two FSDP2 ranks, each half of 518 as well.
TIED = ["--model.tie_embeddings", "--model.vocab_size=515"]
TIED_HALVES = ["--model.tie_embeddings", "--model.vocab_size=518"]

GRAPHS = "--training.disable_cuda_graphs=false"
NO_GRAPHS = "they need a CUDA device; emulated in tests/distributed/test_cuda_graphs.py"
BF16 = "--training.mixed_precision_param=bfloat16"
# As in TorchTitan's own float8 recipes, the unembedding stays in high precision.
FP8 = ["--float8.enable", "--float8.filter_fqns=lm_head"]
EMULATED = "emulated there: tests/distributed/test_precision.py"
BALANCED = "--debug.moe_force_load_balance"  # experts by turns: no rounding sends a token elsewhere

ONE: Layout = (1, [])
FSDP_2: Layout = (2, [])
HSDP_2X2: Layout = (4, [HSDP.format(2)])
TP_2: Layout = (2, [TP.format(2), BATCH.format(4)])
CP_2: Layout = (2, [CP.format(2), BATCH.format(4)])
PP_2: Layout = (2, [PP.format(2), SCHEDULE.format("1F1B"), BATCH.format(4)])
PP_2_INTERLEAVED: Layout = (
    2,
    [PP.format(2), SCHEDULE.format("Interleaved1F1B"), BATCH.format(4)],
)
PP_2_ZBV: Layout = (
    2,
    [PP.format(2), SCHEDULE.format("ZBVZeroBubble"), BATCH.format(4), NO_VALIDATION],
)
TP_2_CP_2: Layout = (4, [TP.format(2), CP.format(2), BATCH.format(4)])
DENSE, MOE = ["dense"], ["moe"]

DATA_PARALLEL = {
    "fsdp_2": Cell(*FSDP_2),
    "fsdp_4": Cell(4, slow=True),
    "hsdp_2x2": Cell(*HSDP_2X2),
    "reshard_always": Cell(2, [RESHARD.format("always")], slow=True),
    "reshard_never": Cell(2, [RESHARD.format("never")], slow=True),
    "cpu_offload": Cell(
        2,
        ["--training.enable_cpu_offload"],
        not_on_cpu="PyTorch pins what it offloads, which needs a device driver",
    ),
    "cuda_graphs": Cell(1, [GRAPHS], models=DENSE, not_on_cpu=NO_GRAPHS),
    "cuda_graphs_fsdp_2": Cell(2, [GRAPHS], models=DENSE, not_on_cpu=NO_GRAPHS),
    "cuda_graphs_tp_2": Cell(2, [*TP_2[1], GRAPHS], models=DENSE, not_on_cpu=NO_GRAPHS),
    "cuda_graphs_cp_2": Cell(2, [*CP_2[1], GRAPHS], models=DENSE, not_on_cpu=NO_GRAPHS),
    "tied_embeddings": Cell(*FSDP_2, problem=TIED, models=DENSE),
    "no_stop_gradient": Cell(*FSDP_2, problem=["--nitp.stop_gradient=false"], models=DENSE),
    "token_cosine": Cell(*FSDP_2, problem=["--nitp.loss=token_cosine"], models=DENSE),
    "pre_norm": Cell(*FSDP_2, problem=["--nitp.hidden=pre_norm"], models=DENSE),
}
MODEL_PARALLEL = {
    "tp_2_sequence_parallel": Cell(*TP_2),
    "tp_2": Cell(2, [TP.format(2), NO_SP], slow=True),
    "tp_2_tied_embeddings": Cell(*TP_2, problem=TIED_HALVES, models=DENSE),
    "cp_2_headtail": Cell(*CP_2),
    "cp_2_in_order": Cell(2, [CP.format(2), IN_ORDER]),
    "cp_4_headtail": Cell(4, [CP.format(4), BATCH.format(4)], problem=[LONG], slow=True),
    "fsdp_2_tp_2": Cell(4, [TP.format(2), BATCH.format(2)], slow=True),
    "fsdp_2_tp_2_tied_embeddings": Cell(
        4, [TP.format(2), BATCH.format(2)], problem=TIED_HALVES, models=DENSE, slow=True
    ),
    "fsdp_2_cp_2": Cell(4, [CP.format(2), BATCH.format(2)], slow=True),
    "cp_2_tied_embeddings": Cell(*CP_2, problem=TIED, models=DENSE, slow=True),
    "tp_2_cp_2": Cell(*TP_2_CP_2, slow=True),
    "fsdp_2_tp_2_cp_2": Cell(8, [TP.format(2), CP.format(2), BATCH.format(2)], slow=True),
}
PIPELINE = {
    "pp_2_1f1b": Cell(*PP_2),
    "pp_2_interleaved": Cell(*PP_2_INTERLEAVED, slow=True),
    "pp_2_interleaved_target_first": Cell(*PP_2_INTERLEAVED, problem=[ON_FIRST_STAGE], slow=True),
    "pp_2_interleaved_target_last": Cell(*PP_2_INTERLEAVED, problem=[ON_LAST_STAGE], slow=True),
    "pp_2_zbv": Cell(*PP_2_ZBV, validate=False),
    "pp_2_zbv_target_first": Cell(*PP_2_ZBV, problem=[ON_FIRST_STAGE], validate=False, slow=True),
    "pp_2_zbv_target_last": Cell(*PP_2_ZBV, problem=[ON_LAST_STAGE], validate=False, slow=True),
    "pp_2_pre_norm": Cell(*PP_2, problem=["--nitp.hidden=pre_norm"], models=DENSE, slow=True),
    "pp_4_1f1b": Cell(
        4,
        [PP.format(4), SCHEDULE.format("1F1B"), BATCH.format(4)],
        problem=["--model.num_layers=4"],
        slow=True,
    ),
    "pp_2_full_recomputation": Cell(2, [*PP_2_INTERLEAVED[1], RECOMPUTE.format("full")], slow=True),
    "fsdp_2_pp_2_1f1b": Cell(4, PP_2[1], problem=TWICE, slow=True),
    "fsdp_2_pp_2_zbv": Cell(4, PP_2_ZBV[1], problem=TWICE, validate=False, slow=True),
    "hsdp_2x2_pp_2": Cell(8, [*PP_2[1], HSDP.format(2), BATCH.format(2)], problem=TWICE, slow=True),
    "tp_2_pp_2": Cell(4, [*PP_2[1], TP.format(2)], slow=True),
    "tp_2_pp_2_zbv": Cell(4, [*PP_2_ZBV[1], TP.format(2)], validate=False, slow=True),
    "cp_2_pp_2": Cell(4, [*PP_2_INTERLEAVED[1], CP.format(2)], slow=True),
    "tp_2_cp_2_pp_2": Cell(8, [*PP_2[1], TP.format(2), CP.format(2)], slow=True),
}
EXPERTS = {
    "ep_2": Cell(2, [EP.format(2)], models=MOE),
    "tp_2_ep_2": Cell(2, [*TP_2[1], EP.format(2)], models=MOE, slow=True),
    "tp_2_ep_2_no_sequence_parallel": Cell(
        2, [*TP_2[1], EP.format(2), NO_SP], models=MOE, slow=True
    ),
    "cp_2_ep_2": Cell(2, [*CP_2[1], EP.format(2)], models=MOE, slow=True),
    "ep_2_full_recomputation": Cell(
        2, [EP.format(2), RECOMPUTE.format("full")], models=MOE, slow=True
    ),
    "ep_2_selective_recomputation": Cell(
        2, [EP.format(2), RECOMPUTE.format("selective")], models=MOE, slow=True
    ),
    "fsdp_4_ep_2": Cell(4, [EP.format(2)], models=MOE, slow=True),
    "fsdp_4_ep_4": Cell(4, [EP.format(4)], models=MOE, slow=True),
    "hsdp_2x2_ep_2": Cell(4, [HSDP.format(2), EP.format(2)], models=MOE, slow=True),
    "fsdp_2_tp_2_ep_4": Cell(
        4, [TP.format(2), EP.format(4), BATCH.format(2)], models=MOE, slow=True
    ),
    "fsdp_2_cp_2_ep_4": Cell(
        4, [CP.format(2), EP.format(4), BATCH.format(2)], models=MOE, slow=True
    ),
    "tp_2_cp_2_ep_4": Cell(4, [*TP_2_CP_2[1], EP.format(4)], models=MOE, slow=True),
    "fsdp_2_pp_2_ep_2": Cell(4, [*PP_2[1], EP.format(2)], problem=TWICE, models=MOE, slow=True),
    "fsdp_2_pp_2_zbv_ep_2": Cell(
        4, [*PP_2_ZBV[1], EP.format(2)], problem=TWICE, models=MOE, validate=False, slow=True
    ),
    "cp_2_pp_2_ep_2": Cell(4, [*PP_2[1], CP.format(2), EP.format(2)], models=MOE, slow=True),
}
COMPILE = "--compile.enable"  # components model and loss, TorchTitan's defaults
COMPILATION = {
    "compile_1": Cell(1, [COMPILE], tolerance=COMPILED, slow=True),
    "compile_cuda_graphs": Cell(
        1, [COMPILE, GRAPHS], models=DENSE, tolerance=COMPILED, not_on_cpu=NO_GRAPHS
    ),
    "compile_fsdp_2": Cell(2, [COMPILE], tolerance=COMPILED, slow=True),
    "compile_fsdp_2_full_recomputation": Cell(
        2, [COMPILE, RECOMPUTE.format("full")], tolerance=COMPILED, slow=True
    ),
    "compile_fsdp_2_selective_recomputation": Cell(
        2, [COMPILE, RECOMPUTE.format("selective")], tolerance=COMPILED, slow=True
    ),
    "compile_fsdp_2_memory_budget": Cell(
        2, [COMPILE, RECOMPUTE.format("memory_budget")], tolerance=COMPILED, slow=True
    ),
    "compile_tp_2": Cell(2, [*TP_2[1], COMPILE], tolerance=COMPILED, slow=True),
    "compile_cp_2": Cell(2, [*CP_2[1], COMPILE], tolerance=COMPILED, slow=True),
    "compile_pp_2": Cell(2, [*PP_2[1], COMPILE], tolerance=COMPILED, slow=True),
}
DTENSORS = {
    "partial_dtensor_fsdp_2": Cell(2, [PARTIAL_DTENSOR], slow=True),
    "partial_dtensor_hsdp_2x2": Cell(4, [HSDP.format(2), PARTIAL_DTENSOR], models=DENSE, slow=True),
    "partial_dtensor_cp_2": Cell(2, [*CP_2[1], PARTIAL_DTENSOR], models=DENSE, slow=True),
    "partial_dtensor_pp_2": Cell(2, [*PP_2[1], PARTIAL_DTENSOR], models=DENSE, slow=True),
    "partial_dtensor_ep_2": Cell(2, [EP.format(2), PARTIAL_DTENSOR], models=MOE, slow=True),
}
RECOMPUTATION = {
    "full_recomputation": Cell(2, [RECOMPUTE.format("full")], slow=True),
    "selective_recomputation": Cell(2, [RECOMPUTE.format("selective")], slow=True),
    "tp_2_cp_2_full_recomputation": Cell(4, [*TP_2_CP_2[1], RECOMPUTE.format("full")], slow=True),
}
# One step: later ones start from weights that the rounding of the first has moved.
PRECISION = {
    "bfloat16": Cell(1, [BF16], tolerance=BFLOAT16, num_steps=1, models=DENSE, slow=True),
    "bfloat16_fsdp_2": Cell(2, [BF16], tolerance=BFLOAT16, num_steps=1, models=DENSE, slow=True),
    "bfloat16_balanced": Cell(
        1, [BF16], [BALANCED], tolerance=BFLOAT16, num_steps=1, models=MOE, slow=True
    ),
    "bfloat16_balanced_ep_2": Cell(
        2, [BF16, EP.format(2)], [BALANCED], tolerance=BFLOAT16, num_steps=1, models=MOE, slow=True
    ),
    "bfloat16_cuda_graphs": Cell(
        1, [BF16, GRAPHS], tolerance=BFLOAT16, num_steps=1, models=DENSE, not_on_cpu=NO_GRAPHS
    ),
    "float8": Cell(1, FP8, tolerance=FLOAT8, num_steps=1, models=DENSE, not_on_cpu=EMULATED),
    "float8_compile_fsdp_2": Cell(
        2, [*FP8, COMPILE], tolerance=FLOAT8, num_steps=1, models=DENSE, not_on_cpu=EMULATED
    ),
}
CHECKPOINTS = {
    "1_then_fsdp_2_then_tp_2": Cell(*ONE, then=[FSDP_2, TP_2]),
    "tp_2_then_cp_2_then_1": Cell(*TP_2, then=[CP_2, ONE], slow=True),
    "1_then_pp_2_then_fsdp_2": Cell(*ONE, then=[PP_2, FSDP_2], slow=True),
    "pp_2_zbv_then_tp_2_then_pp_2_interleaved": Cell(
        *PP_2_ZBV, then=[TP_2, PP_2_INTERLEAVED], slow=True
    ),
    "ep_2_then_1_then_fsdp_4_ep_4": Cell(
        2, [EP.format(2)], then=[ONE, (4, [EP.format(4)])], models=MOE, slow=True
    ),
    "fsdp_4_then_tp_2_cp_2_then_hsdp_2x2": Cell(4, then=[TP_2_CP_2, HSDP_2X2], slow=True),
}
# Two runs of one program differ on a GPU where sums are atomic.
DETERMINISTIC = ["--debug.deterministic", "--debug.deterministic_warn_only"]
BASELINES = {
    f"{baseline}_{name}": Cell(
        *layout,
        problem=[problem, *DETERMINISTIC],
        tolerance=EXACT,
        against="torchtitan",
        slow=layout != ONE,
    )
    for baseline, problem in (("weight_0", "--nitp.weight=0"), ("off", "--nitp.enable=false"))
    for name, layout in (
        ("1", ONE),
        ("fsdp_2", FSDP_2),
        ("tp_2", TP_2),
        ("cp_2", CP_2),
        ("pp_2", PP_2),
    )
}
GROUPS = {
    "FSDP2, HSDP, tied embeddings, ablations": DATA_PARALLEL,
    "tensor, sequence, context parallel": MODEL_PARALLEL,
    "pipeline parallel": PIPELINE,
    "expert parallel": EXPERTS,
    "partial DTensor backend": DTENSORS,
    "activation checkpointing": RECOMPUTATION,
    "torch.compile": COMPILATION,
    "bfloat16, float8": PRECISION,
    "checkpoint into another layout": CHECKPOINTS,
    "`weight = 0`, `enable = false`": BASELINES,
}
CELLS = {name: cell for cells in GROUPS.values() for name, cell in cells.items()}
FIRST_ON_CUDA = (
    "cuda_graphs", "fsdp_2", "compile_1", "compile_cuda_graphs", "cuda_graphs_fsdp_2",
    "tp_2_sequence_parallel", "cp_2_headtail", "pp_2_1f1b", "ep_2", "cuda_graphs_tp_2",
    "cuda_graphs_cp_2", "cpu_offload", "bfloat16", "float8", "1_then_fsdp_2_then_tp_2",
    "bfloat16_cuda_graphs", "float8_compile_fsdp_2", "weight_0_1", "off_1", "pp_2_zbv",
    "bfloat16_balanced", "tp_2", "compile_fsdp_2", "full_recomputation",
)  # fmt: skip
"""By how much a GPU can tell of them that a CPU cannot; the others follow, largest last."""


class Selected(NamedTuple):
    """A cell for one model, and why it is not run, if so."""

    name: str
    model: str
    cell: Cell
    not_run: str

    @property
    def id(self) -> str:
        return f"{self.model}-{self.name}"


def select_cells(device: Device, max_ranks: int, pattern: str = "*") -> list[Selected]:
    """Every cell whose name, or `model-name`, fits the shell pattern, for each of its models.

    On CUDA, where time is short, in order of what a GPU adds.
    """
    selected = []
    for name, cell in CELLS.items():
        for model in cell.models:
            if not (fnmatch(name, pattern) or fnmatch(f"{model}-{name}", pattern)):
                continue
            not_run = cell.not_on_cpu if device == "cpu" else ""
            if not not_run and cell.max_ranks > max_ranks:
                not_run = f"needs {cell.max_ranks} ranks; at most {max_ranks} here"
            selected.append(Selected(name, model, cell, not_run))
    if device == "cuda":
        order = {name: index for index, name in enumerate(FIRST_ON_CUDA)}
        selected.sort(key=lambda s: (order.get(s.name, len(order)), s.cell.max_ranks))
    return selected
