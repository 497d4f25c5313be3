"""bfloat16 and float8: the same on any number of ranks, and near float32 within their rounding."""

import re

import pytest
import torch
from torch import nn
from torchtitan.components.quantization import Float8Linear

from nitp import objective
from nitp.config import NITPConfig
from nitp.loss import NITPLoss, _Term
from nitp.projector import PROJECTOR_NAME
from nitp.sequence import SequenceShards
from recipes.config import float8, load_config
from recipes.parity.world import relative_difference
from tests.distributed.cells import MODELS, Cell, check, run_cells

BFLOAT16 = "--training.mixed_precision_param=bfloat16"
# As in TorchTitan's own float8 recipes, unembedding and router stay in high precision.
FLOAT8 = ["--float8.enable", "--float8.emulate", "--float8.filter_fqns=lm_head"]
FLOAT8_PROJECTOR = [*FLOAT8, "--float8.projector"]
BALANCED = "--debug.moe_force_load_balance"  # experts by turns: no score decides

SAME_MICRO_BATCHES = """The micro-batches are the same, and with them every rounding and, for
float8, every scale of the first step (one per tensor: a weight, gathered whole by FSDP2, or one
micro-batch's activation or gradient). Only float32 sums over micro-batches change order."""
LATER_STEPS = """After the first optimizer step weights differ in their last float32 bits: an
operand at the border of two float8 values then moves by a whole spacing, 2^-3. Measured 4e-5."""

NUM_LAYERS, NUM_TOKENS = 3, 1024  # of tests.distributed.cells.SMALL
EPS = 2.0**-8
ROUNDING = EPS * (2 + NUM_LAYERS**0.5)
NEAR_FLOAT32 = f"""bfloat16 rounds with a relative error of at most eps / 2 = 2^-9. A layer rounds
the residual stream twice and its gradient twice: 4 L independent roundings, eps / 2 * sqrt(4 L) =
eps sqrt(L). What does not grow with depth (weights, the inside of a layer, norm, projector,
unembedding, forward and backward) is put at 16 roundings: 2 eps. In all {ROUNDING:.4f}; measured
0.0082 dense, 0.0111 MoE. A loss is a mean over {NUM_TOKENS} tokens, of errors of either sign:
the same / sqrt({NUM_TOKENS})."""
FLIPS = """Scores a rounding apart send a token to another expert: 76 of 2048 pairs of experts, 3.7
%. Where a share f of the terms of a gradient is exchanged, it moves by about sqrt(2 f): 0.27.
Measured: the router's 0.165, median of all parameters 0.016."""
COARSE = """A gradient is a product of operands in e4m3 (roundoff 2^-4) and e5m2 (2^-3). Measured
0.096; the projector's own, in float8, 0.04."""

# (model, run) -> (the run it is compared with, cell)
CELLS = {
    ("dense", "bfloat16"): (
        "float32", Cell(1, [BFLOAT16], ROUNDING / NUM_TOKENS**0.5, ROUNDING, NEAR_FLOAT32),
    ),
    ("moe", "bfloat16_balanced"): (
        "float32_balanced",
        Cell(1, [BFLOAT16, BALANCED], ROUNDING / NUM_TOKENS**0.5, ROUNDING, NEAR_FLOAT32),
    ),
    ("moe", "bfloat16"): (
        "float32", Cell(1, [BFLOAT16], ROUNDING / NUM_TOKENS**0.5, 0.27, FLIPS),
    ),
    ("dense", "float8"): ("float32", Cell(1, FLOAT8, 1e-3, 2.0**-3, COARSE)),
    ("dense", "float8_projector"): ("float32", Cell(1, FLOAT8_PROJECTOR, 1e-3, 2.0**-3, COARSE)),
} | {
    (model, f"{precision}_{technique}"): (
        precision, Cell(2, [*overrides, *more], loss, reason=reason),
    )
    for model in MODELS
    for precision, (overrides, loss, reason) in {
        "bfloat16": ([BFLOAT16], 1e-5, SAME_MICRO_BATCHES),
        "float8": (FLOAT8, 2e-4, SAME_MICRO_BATCHES + LATER_STEPS),
        "float8_projector": (FLOAT8_PROJECTOR, 2e-4, SAME_MICRO_BATCHES + LATER_STEPS),
    }.items()
    for technique, more in {
        "fsdp_2": [],
        "fsdp_2_full_checkpointing": ["--activation_checkpoint.mode=full"],
    }.items()
}  # fmt: skip
REFERENCES = {
    ("dense", "float32"): [],
    ("moe", "float32"): [],
    ("moe", "float32_balanced"): [BALANCED],
    ("moe", "float8"): FLOAT8,
    ("moe", "float8_projector"): FLOAT8_PROJECTOR,
}


@pytest.fixture(scope="module")
def results():
    references = {key: Cell(1, overrides) for key, overrides in REFERENCES.items()}
    return run_cells(references | {key: cell for key, (_, cell) in CELLS.items()})


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name"), CELLS)
def test_a_precision_costs_no_more_than_its_rounding(results, model, name):
    reference, cell = CELLS[model, name]
    check(cell, results[model, reference], results[model, name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "float8", "float8_projector"])
def test_low_precision_is_really_used(results, name):
    """The bounds above would hold for float32 itself. The projector's own gradients move too where
    it only reads and predicts what was rounded."""
    float32, low = results["dense", "float32"].grads, results["dense", name].grads
    for parameter, grad in float32.items():
        assert relative_difference(low[parameter], grad) > EPS / 8, parameter
    kept, converted = (results["dense", n].grads for n in ("float8", "float8_projector"))
    assert any(not torch.equal(kept[p], converted[p]) for p in kept)


# ----------------------------------------------------------------------- bfloat16, in the loss


def test_the_objective_computes_in_float32_whatever_the_activations_dtype():
    """Value and gradient equal those of the same bfloat16 numbers given as float32, but for the one
    rounding of the gradient to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 64, 32, generator=generator).bfloat16()
    weight = torch.rand(64, generator=generator)
    values, grads = [], []
    for dtype in (torch.bfloat16, torch.float32):
        leaf = pred.to(dtype, copy=True).requires_grad_()
        value = objective.alignment_sum(leaf, target.to(dtype), weight, "cosine")
        value.backward()
        values.append(value)
        grads.append(leaf.grad)
    assert values[0].dtype == torch.float32 and torch.equal(*values)
    assert torch.equal(grads[0], grads[1].bfloat16())


def test_nitps_gradient_is_added_in_float32_before_the_one_rounding():
    """1 + (2^-8 + 2^-18): bfloat16 has no number between 1 and 1 + 2^-7. Just above the middle, the
    sum rounds up; NITP's gradient rounded by itself is 2^-8, the sum a tie, which rounds down."""
    h = torch.zeros(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    ntp = torch.ones_like(h)
    nitp = torch.full_like(h, 2**-8 + 2**-18, dtype=torch.float32)
    loss = NITPLoss.Config().build()
    decoder = nn.Module()
    decoder.nitp_projector = None
    device = torch.device("cpu")
    loss.attach(
        decoder, NITPConfig(), SequenceShards(), device, is_pipelined=False, trainer_name="Trainer"
    )
    loss._term = _Term(torch.tensor(0.0), [(h, nitp)])
    loss._gradient_backprop(h, ntp, torch.tensor(0.0), nn.Identity(), False).backward()
    assert h.grad.item() == 1 + 2**-7
    assert (ntp + nitp.bfloat16()).item() == 1.0


# ------------------------------------------------------------------------------------- float8


def linears(overrides: list[str]) -> dict[str, nn.Linear]:
    config = load_config(MODELS["dense"], overrides)
    assert config.model_spec is not None
    with torch.device("meta"):
        model = config.model_spec.model.build()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


@pytest.mark.parametrize("projector", [False, True])
def test_the_projector_computes_in_float8_only_on_request(projector):
    converted = linears(FLOAT8_PROJECTOR if projector else FLOAT8)
    assert converted.keys() == linears([]).keys()
    for name, linear in converted.items():
        keeps = name == "lm_head" or (name.startswith(PROJECTOR_NAME) and not projector)
        assert isinstance(linear, Float8Linear) != keeps, name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--float8.enable"], "only supported on NVIDIA SM89 or later"),
        ([*FLOAT8, "--compile.enable"], "set `float8.emulate` to True in eager mode"),
        ([*FLOAT8_PROJECTOR, "--nitp.projector_ratio=0.55"],
         "float8.projector (true) cannot convert nitp_projector.w1 (192 -> 106)"),
        ([*FLOAT8, "--float8.projector", "--float8.filter_fqns=w2"],
         "float8.projector (true) cannot convert nitp_projector.w2"),
        ([*FLOAT8_PROJECTOR, "--nitp.projector=none"],
         "float8.projector (true) has nothing to convert"),
        ([*FLOAT8, "--float8.filter_fqns=lm_haed"], "Did you mean lm_head?"),
        ([*FLOAT8, "--float8.filter_fqns=w,lm_head"], "float8.enable (true) converts no linear"),
    ],
)  # fmt: skip
def test_what_float8_cannot_do_is_refused_by_name(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(MODELS["dense"], overrides)


def test_a_baseline_may_keep_the_projectors_option():
    load_config(MODELS["dense"], FLOAT8_PROJECTOR, ["--nitp.enable=false"])


def test_float8_without_torchao_names_the_package(monkeypatch):
    monkeypatch.setattr(float8, "Float8Linear", None)
    with pytest.raises(ValueError, match=r"^float8.enable \(true\) needs torchao"):
        load_config(MODELS["dense"], FLOAT8)
