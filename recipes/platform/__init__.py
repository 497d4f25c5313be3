"""The platform, chosen once: an accelerator, or the CPU in its place.

Import this package before anything of torchtitan, which resolves its device when it is imported.
"""

import logging
from typing import Any

import torch

ON_CPU = torch._utils._get_available_device_type() in (None, "cpu")
"""Whether this machine has no accelerator; then the CPU platform takes its place."""

if ON_CPU:
    from recipes.platform import cpu

    cpu.activate()

# Where torchao is installed, torch warns of two needless registrations whenever it is imported.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


def on_platform(config: Any) -> Any:
    """The Trainer.Config as this machine can run it."""
    return cpu.adapt(config) if ON_CPU else config
