"""From a training checkpoint to a Hugging Face folder without a trace of the projector.

command.py     python scripts/export.py
request.py     what to export, checked without torch
run.py         from a run's settings to its export
final.py       the `[export]` table: at the end of training
config.py      config.json and generation_config.json
record.py      what an export was made from, and whether a folder is the one asked for
checkpoint.py  reads a DCP checkpoint tensor by tensor, without a process group
writer.py      sharded safetensors, staged folder
card.py        the model card
reference.py   our own model on the exported precision
verify.py      the written folder against the plan and against our own model
exporter.py    the steps in order
"""
