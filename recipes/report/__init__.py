"""The report on finished runs: scripts/compare_runs.py.

runs -> groups -> measures -> figures, page, markdown. Only `figures` needs the plotting library.
Free of torch.
"""
