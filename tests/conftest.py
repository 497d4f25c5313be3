"""The device is chosen before any test imports torchtitan. Tests send hang-ups, which nohup would
have their processes ignore."""

import signal

import recipes.platform  # noqa: F401

signal.signal(signal.SIGHUP, signal.SIG_DFL)
