"""The device is chosen before any test imports torchtitan."""

import recipes.platform  # noqa: F401
