"""The options of Next Implicit Token Prediction, and of its measurements.

Plain data: no torch, so a command line can check it before anything heavy is imported.
"""

from dataclasses import dataclass, field, fields
from math import ceil
from typing import Literal, get_args

LossName = Literal["cosine", "mse", "smooth_l1", "kl", "token_cosine"]
HiddenName = Literal["post_norm", "pre_norm"]
ProjectorName = Literal["swiglu", "none"]

_EIGENVALUES_S = 8.7
"""Of one covariance of width 4096, in float64 by one thread of an AMD EPYC."""
_NUM_STATES = 3
"""Kinds of states that are measured in any case: after and before the final norm, and targets."""
_SHARE, _STEP_S = 0.01, 1.0
"""What measuring may take by default of steps that take so long."""


@dataclass(kw_only=True, slots=True, frozen=True)
class NITPConfig:
    """Settings of the NITP objective (method section 1). Defaults are the paper's for 9B."""

    enable: bool = True
    """Whether to train with NITP. False: the next-token baseline, bit for bit."""

    target_layer: int = 5
    """k: the target is the residual stream after k decoder layers; 0 is the embedding output.
    Must be in 0..number of layers; the paper's best is about 20 % of the depth."""

    weight: float = 0.8
    """lambda in L_total = L_NTP + lambda * L_NITP. At least 0; 0 is the baseline, bit for bit."""

    start_step: int = 0
    """First step (counted from 1) that trains with NITP; 0 and 1 both mean from the beginning. The
    projector keeps its initial values until then. At most the number of steps."""

    loss: LossName = "cosine"
    """Distance between prediction and target. token_cosine penalises the cosine between tokens of
    a document and uses no target."""

    shift: Literal[0, 1] = 1
    """1: predict the next token's implicit token; 0: the same position's."""

    stop_gradient: bool = True
    """Whether the target is detached. False runs on one device or data parallel only."""

    hidden: HiddenName = "post_norm"
    """The predicting hidden state: what the unembedding reads, or the same before the norm."""

    projector: ProjectorName = "swiglu"
    """Training-only head on the hidden state: a SwiGLU MLP, or none."""

    projector_ratio: float = 4.0
    """Hidden width of the projector over the model dimension. Greater than 0."""

    def __post_init__(self) -> None:
        for option in fields(self):
            choices = get_args(option.type)
            value = getattr(self, option.name)
            if choices and value not in choices:
                raise ValueError(
                    f"nitp.{option.name} ({value!r}) is not a valid choice. "
                    f"Use one of {', '.join(repr(c) for c in choices)}."
                )
        if self.target_layer < 0:
            raise ValueError(
                f"nitp.target_layer ({self.target_layer}) must not be negative. "
                "Use 0 for the embedding output or k for the output of layer k."
            )
        if not 0.0 <= self.weight < float("inf"):
            raise ValueError(
                f"nitp.weight ({self.weight}) must be finite and at least 0. "
                "The paper uses 0.6 to 1.0; 0 is the baseline."
            )
        if self.start_step < 0:
            raise ValueError(
                f"nitp.start_step ({self.start_step}) must be at least 0. "
                "Use 0 to train with NITP from the first step."
            )
        if not 0.0 < self.projector_ratio < float("inf"):
            raise ValueError(
                f"nitp.projector_ratio ({self.projector_ratio}) must be finite and greater "
                "than 0. The paper uses 4."
            )

    @property
    def is_active(self) -> bool:
        """Whether the run has an NITP term at all."""
        return self.enable and self.weight > 0.0

    @property
    def uses_target(self) -> bool:
        """Whether the loss compares with a target (all but the token-cosine penalty)."""
        return self.loss != "token_cosine"

    def check_depth(self, num_layers: int) -> None:
        """Raise ValueError unless target_layer exists in a model of `num_layers` layers."""
        if self.uses_target and self.target_layer > num_layers:
            raise ValueError(
                f"nitp.target_layer ({self.target_layer}) must be at most the number of "
                f"layers ({num_layers}). Set 0..{num_layers}."
            )

    def check_steps(self, num_steps: int) -> None:
        """Raise ValueError unless start_step is one of a run's `num_steps` steps."""
        if self.start_step > num_steps:
            raise ValueError(
                f"nitp.start_step ({self.start_step}) must be at most training.steps "
                f"({num_steps}): NITP would never train. Lower it, or set nitp.enable = false."
            )


@dataclass(kw_only=True, slots=True, frozen=True)
class GeometryConfig:
    """What is measured of the states of each batch (method section 4). Changes no result."""

    enable: bool = True
    """Whether to measure effective rank and average cosine in training and validation."""

    freq: int | None = None
    """Steps between two measurements, a multiple of metrics.log_freq; the first step is measured
    too. None: every logged step of models up to a width of some hundreds, and of wider ones as
    rarely as keeps their eigenvalues, which grow with the width's cube, below 1 % of the time at
    one second a step."""

    layers: list[int] | Literal["all"] = field(default_factory=list)
    """Depths to measure as well, to choose nitp.target_layer by: 0 is the embedding output, k the
    output of layer k. Each costs as much as one of the states that are measured anyway."""

    def __post_init__(self) -> None:
        if self.freq is not None and self.freq < 1:
            raise ValueError(
                f"geometry.freq ({self.freq}) must be at least 1. Leave it out to measure at "
                "every logged step."
            )
        if self.layers != "all" and (
            len(set(self.layers)) < len(self.layers) or min(self.layers, default=0) < 0
        ):
            raise ValueError(
                f"geometry.layers ({self.layers}) must be different depths from 0 on. "
                'Use "all" for each.'
            )

    def depths(self, num_layers: int) -> list[int]:
        """`layers` of a model of `num_layers` layers, in order. Raises ValueError for one that it
        does not have."""
        if self.layers == "all":
            return list(range(num_layers + 1))
        if max(self.layers, default=0) > num_layers:
            raise ValueError(
                f"geometry.layers ({self.layers}) must be at most the number of layers "
                f"({num_layers}). Set 0..{num_layers}."
            )
        return sorted(self.layers)

    def find_freq(self, log_freq: int, width: int) -> int:
        """`freq`, or its default for states of `width`. By the configuration alone, so that a run
        and its baseline, and each again, measure at the same steps."""
        if self.freq is not None:
            return self.freq
        num_extra = 0 if self.layers == "all" else len(self.layers)
        eigenvalues_s = (_NUM_STATES + num_extra) * _EIGENVALUES_S * (width / 4096) ** 3
        num_steps = eigenvalues_s / (_SHARE * _STEP_S)
        return log_freq * max(1, ceil(num_steps / log_freq))
