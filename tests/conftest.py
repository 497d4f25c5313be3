"""The device is chosen before any test imports torchtitan."""

import torch

if torch._utils._get_available_device_type() is None:
    from recipes import cpu

    cpu.activate()
