"""From a training checkpoint to a Hugging Face folder without a trace of the projector, and back.

mapping.py     names: the decoder's parameters and stock Hugging Face architectures
checkpoint.py  reads a DCP checkpoint tensor by tensor, without a process group
writer.py      sharded safetensors, staged folder
hf_config.py   config.json and generation_config.json
card.py        the model card
verify.py      the written folder against the plan and against our own model
exporter.py    the steps in order
"""
