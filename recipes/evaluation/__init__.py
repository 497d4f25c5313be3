"""Benchmarks of exported models, side by side.

command.py    python scripts/evaluate.py
suite.py      which tasks, as a file names them; suites/ holds the paper's two
models.py     what to evaluate: Hugging Face folders, and runs, whose checkpoint is exported first
language.py   tasks of lm-evaluation-harness: the model continues text
embedding.py  tasks of mteb, on vectors of texts
hidden_states.py  texts as vectors: means of a model's last hidden states
runner.py     every model on every task that has no result yet
results.py    one file a model and task
compare.py    means, and paired differences with intervals
table.py      Markdown and JSON
"""
