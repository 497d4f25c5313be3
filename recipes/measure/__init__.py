"""The geometry of a model's hidden states on text: effective rank, average cosine, constant loss.

command.py    python scripts/geometry.py
request.py    what to measure on which data, checked without torch
rows.py       packed rows, as training packs them, and batches of them
parts.py      where a model's states pass: its layers, final norm and unembedding
stock.py      a Hugging Face folder as stock transformers runs it
own.py        a run's checkpoint in its own model
states.py     sums over the states that pass, and the figures made of them
measure.py    the steps in order
report.py     one table
"""
