"""How near a cell must come to its reference, and why it is not nearer. Imports no torch."""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """Largest relative error that is still parity, and why it is not zero."""

    loss: float
    """Of losses, in training and validation."""

    tensor: float
    """Of each gradient, parameter and optimizer state: norm of the difference over norm."""

    reason: str
    metric: float | None = None
    """Of logged means other than losses: gradient norms, what is measured of the states. None: as
    of losses."""


FLOAT32 = Tolerance(5e-6, 5e-6, "float32 sums in another order, over three optimizer steps")
EXACT = Tolerance(0.0, 0.0, "the same operations in the same order")
CUDA = Tolerance(
    1e-4,
    1e-4,
    "float32 with TF32 off, but kernels chosen by shape and atomic sums: the order differs within "
    "an operation too",
)
"""At least this on CUDA. Not measured yet."""

# bfloat16 rounds with a relative error of at most eps / 2 = 2^-9. A layer rounds the residual
# stream twice and its gradient twice: 4 L independent roundings, eps / 2 * sqrt(4 L) = eps sqrt(L).
# What does not grow with depth (weights, the inside of a layer, norm, projector, unembedding,
# forward and backward) is put at 16 roundings: 2 eps. A loss is a mean over tokens, of errors of
# either sign. Adam's second moments are squares of gradients: twice their error.
_NUM_LAYERS, _NUM_TOKENS = 3, 1024  # of the problem; no fewer labels count
_ROUNDING = 2.0**-8 * (2 + _NUM_LAYERS**0.5)
BFLOAT16 = Tolerance(
    _ROUNDING / _NUM_TOKENS**0.5,
    2 * _ROUNDING,
    "bfloat16's rounding, eps (2 + sqrt(L)) of a gradient, of a loss that over the root of its "
    "tokens, of a second moment twice that",
    metric=_ROUNDING,
)
FLOAT8 = Tolerance(
    1e-3,
    2 * 2.0**-3,
    "products of e4m3 (roundoff 2^-4) and e5m2 (2^-3) in gradients, twice that in second moments",
    metric=2.0**-3,
)
COMPILED = Tolerance(5e-6, 5e-6, "the compiler fuses and reorders float32 operations")
