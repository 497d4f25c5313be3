"""What each figure shows, and the words around it."""

from typing import NamedTuple

from recipes.report import tags
from recipes.report.panels import Curves, Depth, Differences, Panel, View


class Spec(NamedTuple):
    """What a figure shows."""

    name: str
    """Of its file."""

    title: str
    """A sentence: what to look for."""

    caption: str
    """How it is made, where that is not plain."""

    panels: tuple[Panel, ...]
    reference: str = ""
    """What a dotted line is."""


SPECS = (
    Spec(
        "loss",
        "Does NITP cost language modelling? It does not where the curves lie on each other",
        "Cross entropy of the next token, L_NTP, without NITP's share. Training: the batch of "
        "each logged step, not smoothed. Validation: held-out documents.",
        (
            Curves(tag=tags.NTP, label="training L_NTP (nats/token)"),
            Curves(tag=tags.VALIDATION, label="validation loss (nats/token)"),
        ),
    ),
    Spec(
        "loss_difference",
        "The same seeds side by side: above 0 the baseline predicts the next token better",
        "Runs of one seed start from the same weights and see the same batches, so their "
        "difference is far less noisy than either. A point is the mean over the logged steps since "
        "the point before, ten points for each factor of ten in steps. Band: 95 % interval of the "
        "mean over the seeds (Student's t).",
        (
            Differences(tag=tags.NTP, label="training L_NTP (nats/token)"),
            Differences(tag=tags.VALIDATION, label="validation loss (nats/token)"),
        ),
    ),
    Spec(
        "nitp_loss",
        "Only the gap between the solid and the dotted line has been learnt",
        "Dotted: the best loss of a prediction that ignores its input. Skill is the share of it "
        "that the model removes: 0 is nothing learnt, 1 is perfect. Phases of the paper: I, the "
        "loss falls while all states are alike; II, it climbs as shallow states become "
        "informative; III, it declines. Vertical lines part them, at the minimum and at the top of "
        "the hump.",
        (
            Curves(
                tag=tags.NITP, label="L_NITP, 1 - cosine", reference=tags.CONSTANT,
                has_phases=True, log_y=True,
            ),
            Curves(tag=tags.SKILL, label="skill"),
        ),
        reference="a constant prediction",
    ),
    Spec(
        "effective_rank",
        "How many directions the hidden states use: NITP is meant to keep more of them",
        "Exponential of the entropy of the covariance's eigenvalues, over the tokens of a training "
        "batch. The model predicts from the state after the final norm. The implicit target is the "
        "shallow state that NITP predicts.",
        (
            Curves(tag=tags.RANK, label="effective rank, after the final norm"),
            Curves(tag=tags.PRE_RANK, label="effective rank, before it"),
            Curves(tag=tags.TARGET_RANK, label="effective rank, implicit targets"),
        ),
    ),
    Spec(
        "average_cosine",
        "How alike the states of unrelated tokens are: 1 is all the same, lower is more spread out",
        "Mean cosine over all pairs of tokens from different sequences of a training batch.",
        (
            Curves(tag=tags.COSINE, label="average cosine, after the final norm"),
            Curves(tag=tags.PRE_COSINE, label="average cosine, before it"),
            Curves(tag=tags.TARGET_COSINE, label="average cosine, implicit targets"),
        ),
    ),
    Spec(
        "geometry_difference",
        "What NITP changes in the geometry, seed by seed: 0 is nothing",
        "States after the final norm. A point is the mean over the logged steps since the point "
        "before, ten for each factor of ten. Band: 95 % interval of the mean over the seeds.",
        (
            Differences(tag=tags.RANK, label="effective rank"),
            Differences(tag=tags.COSINE, label="average cosine"),
        ),
    ),
    Spec(
        "validation",
        "The same on held-out documents: what is learnt must show here too",
        "Over the held-out batches of each validation. Dotted: a constant prediction.",
        (
            Curves(tag=tags.VALIDATION_RANK, label="effective rank, after the norm"),
            Curves(tag=tags.VALIDATION_PRE_RANK, label="effective rank, before it"),
            Curves(tag=tags.VALIDATION_TARGET_RANK, label="effective rank, targets"),
            Curves(tag=tags.VALIDATION_COSINE, label="average cosine, after the norm"),
            Curves(tag=tags.VALIDATION_PRE_COSINE, label="average cosine, before it"),
            Curves(tag=tags.VALIDATION_TARGET_COSINE, label="average cosine, targets"),
            Curves(
                tag=tags.VALIDATION_NITP, label="L_NITP, 1 - cosine",
                reference=tags.VALIDATION_CONSTANT, log_y=True,
            ),
            Curves(tag=tags.VALIDATION_SKILL, label="skill"),
        ),
        reference="a constant prediction",
    ),
    Spec(
        "depth",
        "Geometry after each layer: what the target layer offers, and what becomes of it",
        "The residual stream after each layer that geometry.layers names. Vertical line: NITP's "
        "target layer.",
        (
            Depth(measure="effective_rank", label="effective rank"),
            Depth(measure="average_cosine", label="average cosine"),
        ),
    ),
    Spec(
        "cost",
        "What NITP costs while training; at inference it costs nothing",
        "As TorchTitan measures them: of the device that logs, with whatever else ran on the "
        "machine. Speed: a point is the mean over the logged steps since the point before, ten for "
        "each factor of ten, without the first of each start, which also starts up.",
        (
            Curves(tag=tags.THROUGHPUT, label="throughput (tokens/s per device)", is_pace=True),
            Curves(tag=tags.STEP_TIME, label="time of a step (s)", is_pace=True),
            Curves(tag=tags.MEMORY, label="memory reserved, peak (GiB)"),
        ),
    ),
)  # fmt: skip


def list_specs(view: View) -> list[Spec]:
    """SPECS, and a figure of the held-out sets where runs have them."""
    names = tags.list_sets(tag for g in view.groups for run in g.runs for tag in run.curves)
    if not names:
        return [*SPECS]
    panels = (Curves(tag=tags.SET_LOSS.format(n), label=f"{n} (nats/token)") for n in names)
    sets = Spec(
        "validation_sets",
        "The same question of each held-out set, read whole",
        "Cross entropy of the next token. Every validation reads the same tokens.",
        tuple(panels),
    )
    return [SPECS[0], sets, *SPECS[1:]]
