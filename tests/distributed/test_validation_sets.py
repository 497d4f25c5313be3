"""Held-out sets under every way to spread a validation: the figures of one rank."""

from pathlib import Path

import pytest

from recipes.parity.world import Case, Result, run_cases
from tests.unit.data_samples import write_jsonl

DEBUG, MOE = "train_configs/debug.toml", "train_configs/debug_moe.toml"
TP = ["--parallelism.tensor_parallel_degree=2"]
CP = ["--parallelism.context_parallel_degree=2"]
PP = [
    "--parallelism.pipeline_parallel_degree=2", "--training.disable_cuda_graphs",
    "--parallelism.pipeline_parallel_microbatch_size=1",
]  # fmt: skip
OFF = ["--nitp.enable=false"]
# Name -> (configuration, ranks, overrides).
LAYOUTS: dict[str, tuple[str, int, list[str]]] = {
    "nitp": (DEBUG, 1, []),
    "nitp-fsdp_3": (DEBUG, 3, []),
    "nitp-tp": (DEBUG, 2, TP),
    "nitp-cp": (DEBUG, 2, CP),
    "nitp-pp": (DEBUG, 2, PP),
    "nitp-pp_fsdp": (DEBUG, 4, PP),
    "baseline": (DEBUG, 1, OFF),
    "baseline-fsdp_2": (DEBUG, 2, OFF),
    "unmeasured": (DEBUG, 1, [*OFF, "--geometry.enable=false"]),
    "unmeasured-pp": (DEBUG, 2, [*OFF, *PP, "--geometry.enable=false"]),
    "moe": (MOE, 1, []),
    "moe-fsdp_2": (MOE, 2, []),
}
TEXTS = {"code": ["def f(x):\n    return x\n" * 30] * 5, "signs": ["日本🙂 café"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Result]:
    folder: Path = tmp_path_factory.mktemp("sets")
    tables = []
    for name, texts in TEXTS.items():
        path = write_jsonl(folder / f"{name}.jsonl", [{"text": text} for text in texts])
        tables.append(f"{{name = '{name}', path = '{path}'}}")
    cases = []
    for name, (config, num_ranks, overrides) in LAYOUTS.items():
        shared = [
            f"--validation.sets=[{', '.join(tables)}]", "--data.validation_fraction=0",
            "--data.num_streams=12",
            "--training.seq_len=256", "--training.local_batch_size=2",
            "--training.global_batch_size=-1", "--model.num_layers=3",
        ]  # fmt: skip
        if "--nitp.enable=false" not in overrides:
            shared.append("--nitp.target_layer=1")
        start = name.partition("-")[0]
        cases.append(
            Case(
                name, config, [*shared, *overrides], num_steps=0, validate=True,
                legs=[(num_ranks, [])], start=None if start == name else start,
            )
        )  # fmt: skip
    found = {}
    for case, result in run_cases(cases):
        assert isinstance(result, Result), f"{case.name}: {result}\n{result.log}"
        found[case.name] = result
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYOUTS if "-" in name])
def test_a_layout_changes_no_figure(results, name):
    """1e-5: float32 sums in another order; 1e-3: experts compute in bfloat16."""
    reference, figures = results[name.partition("-")[0]].validation, results[name].validation
    is_figure = lambda tag: "throughput" not in tag and "memory" not in tag  # noqa: E731
    assert set(filter(is_figure, reference)) == set(filter(is_figure, figures))
    for set_name in TEXTS:
        for tag in ("loss", "bits_per_byte"):
            assert f"validation_metrics/{set_name}/{tag}" in reference
    rel = 1e-3 if name.startswith("moe") else 1e-5
    for tag in filter(is_figure, reference):
        assert figures[tag] == pytest.approx(reference[tag], rel=rel, abs=1e-6), tag
    assert figures["validation_metrics/loss"] == figures["validation_metrics/code/loss"]
