"""NITP inside a CUDA graph, by emulation: the same steps as without."""

import pytest
import torch

from recipes.parity import problem
from recipes.parity.world import Case, Result, relative_difference, run_cases
from tests.distributed.emulated_graphs import (
    CaptureError,
    CUDAGraph,
    Streams,
    fake_cuda,
    refuse_host_data,
)

PROBES = "tests.distributed.emulated_graphs:"
NUM_STEPS = 4
HSDP = "--parallelism.data_parallel_replicate_degree=2"
RUNS = {
    # Without accumulation the second step is the one that is captured, after a validation; the
    # third is the first with NITP: a branch frozen in the graph would never take it.
    "fsdp_2_start_step": (2, ["--nitp.start_step=3", "--training.global_batch_size=2"]),
    "fsdp_2_baseline": (2, ["--nitp.enable=false", "--training.global_batch_size=2"]),
    "tp_2": (2, ["--parallelism.tensor_parallel_degree=2"]),
    "cp_2": (2, ["--parallelism.context_parallel_degree=2"]),
    "one_rank": (1, []),
    "hsdp_2x2": (4, [HSDP]),
    "fsdp_2_full_recomputation": (2, ["--activation_checkpoint.mode=full"]),
    "fsdp_2_pre_norm": (2, ["--nitp.hidden=pre_norm"]),
    "fsdp_2_mse": (2, ["--nitp.loss=mse"]),
    "fsdp_2_no_stop_gradient": (2, ["--nitp.stop_gradient=false"]),
    "fsdp_2_token_cosine": (2, ["--nitp.loss=token_cosine"]),
}
TAGS = (
    "loss_metrics/", "nitp/", "geometry/", "grad_norm", "lr/", "n_tokens_seen",
    *(f"validation_metrics/{name}" for name in ("loss", "nitp_loss", "effective_rank",
      "average_cosine", "pre_norm_", "target_", "constant_loss", "skill")),
)  # fmt: skip
IN_DEFAULT_SUITE = ("fsdp_2_start_step", "tp_2")


@pytest.fixture(scope="module")
def results(request, tmp_path_factory) -> dict[str, Result]:
    """Of the runs that the selected tests ask for, eager and from a graph."""
    items = [item for item in request.session.items if item.path == request.path]
    wanted = [item.callspec.params["name"] for item in items if "results" in item.fixturenames]
    config, model = problem.MODELS["dense"]
    data = problem.write_data(tmp_path_factory.mktemp("problem"))
    overrides = [*problem.OVERRIDES, *model, *data, "--nitp.weight=0.7"]
    cases = [
        Case(
            f"{name}-{mode}",
            config,
            [*overrides, *RUNS[name][1]],
            num_steps=NUM_STEPS,
            legs=[(RUNS[name][0], [])],
            keeps_state=True,
            masks_prompts=True,
            probe=PROBES + probe,
        )
        for name in wanted
        for mode, probe in (("eager", "run_eagerly"), ("graph", "emulate_graphs"))
    ]
    results = {}
    for case, result in run_cases(cases):
        assert isinstance(result, Result), f"{case.name}: {result}\n{result.log}"
        results[case.name] = result
    return results


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in IN_DEFAULT_SUITE else [pytest.mark.slow]) for n in RUNS],
)
def test_steps_replayed_from_a_graph_are_those_of_eager_steps(results, name):
    """Validation runs between the steps. The operations are the same, on memory that lies
    elsewhere, and with it the last bits of CPU kernels' sums: 1e-6. A step that reads stale memory,
    adds twice or keeps a branch is off by 1e-3 and more."""
    eager, graph = results[f"{name}-eager"], results[f"{name}-graph"]
    assert graph.probes[-1] == {"num_captures": 2}  # the pool's empty one, and the step
    assert len(graph.metrics) == len(eager.metrics) == NUM_STEPS
    for mine, other in zip(graph.metrics, eager.metrics, strict=True):
        assert mine.keys() == other.keys()
        compared = [tag for tag in other if tag.startswith(TAGS)]
        assert {tag.partition("/")[0] for tag in compared} >= {"geometry", "validation_metrics"}
        for tag in compared:
            assert mine[tag] == pytest.approx(other[tag], rel=1e-6, abs=1e-7), tag
    assert graph.state.keys() == eager.state.keys()
    for parameter, value in eager.state.items():
        assert relative_difference(graph.state[parameter], value) < 1e-6, parameter


# ------------------------------------------------------------------ what the emulation can see


def capture(function) -> CUDAGraph:
    """`function(streams)` captured as the wrapper does it."""
    streams, graph = Streams(), CUDAGraph()
    with refuse_host_data(streams), fake_cuda(streams).graph(graph):
        function(streams)
    graph.replay()
    return graph


X = torch.arange(6.0)


def wait_for_uncaptured_work(event):
    return lambda streams: streams.current_stream().wait_event(event)


def leave_a_stream_behind(streams):
    side = streams.Stream()
    side.wait_stream(streams.current_stream())
    with streams.stream(side):
        X.add(1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda streams: X.sum().item(), "the host needs the result of aten._local_scalar_dense"),
        (lambda streams: X.tolist(), "tolist copies between host and device"),
        (lambda streams: X.cpu(), "cpu copies between host and device"),
        (lambda streams: bool(X[0] > 0), "the host needs the result"),
        (lambda streams: X[X > 2], "the host needs the number of elements"),
        (lambda streams: X.nonzero(), "the host needs the result of aten.nonzero"),
        (lambda streams: X[[0, 2]], "a tensor is made of a list of the host's"),
        (lambda streams: X + torch.tensor(1.0), "tensor copies between host and device"),
        (leave_a_stream_behind, "before a stream that it forked has rejoined"),
    ],
)
def test_what_a_capture_refuses_is_refused(fault, message):
    with pytest.raises(CaptureError, match=message):
        capture(fault)


def test_a_captured_stream_may_not_wait_for_work_outside():
    streams = Streams()
    with streams.stream(streams.Stream()):
        X.add(1)
        event = streams.current_stream().record_event()
    with pytest.raises(CaptureError, match="waits for work outside the capture"):
        capture(wait_for_uncaptured_work(event))


def test_a_side_stream_that_rejoins_is_captured():
    def fork_and_join(streams):
        side = streams.Stream()
        side.wait_stream(streams.current_stream())
        with streams.stream(side):
            X.add(1)
        streams.current_stream().wait_stream(side)

    capture(fork_and_join)


def test_a_replay_computes_from_what_the_memory_holds_now_and_runs_no_python():
    x, total, calls = torch.zeros(3), torch.zeros(()), []

    def step(streams):
        calls.append(1)
        doubled = 2 * x
        total.add_(doubled.sum())

    graph = capture(step)
    x.copy_(torch.ones(3))
    graph.replay()
    x.copy_(torch.full((3,), 2.0))
    graph.replay()
    assert len(calls) == 1 and total == 2 * 3 + 2 * 6
