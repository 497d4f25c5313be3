"""Options without effect: an error where they are asked for, out of the way where they are not.

An option is idle where others make it so: `checkpoint.interval` while `checkpoint.enable` is false.
Given as specifically as what makes it idle, or more so, it is a mistake: two arguments of a command
line, or two keys of a file, in whatever order. Given less specifically,
it has been turned off on purpose, as when `--checkpoint.enable=false` follows a file that sets an
interval; it then takes its default, so that a saved configuration has nothing idle in it. Weights
to start from are never turned off like that.

Free of torch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from recipes.config.schema import Schema
from recipes.config.values import convert_value, show_value

Values = dict[str, dict[str, Any]]

NEVER_OFF = ("checkpoint.initial_load_path", "checkpoint.load_step")
"""A run without them is another run than the one that is meant."""


class Idle(NamedTuple):
    """What makes some options idle."""

    options: tuple[str, ...]
    """As `table.key` or patterns of it."""

    switches: tuple[str, ...]
    """The options that decide; never idle by this rule themselves."""

    holds: Callable[[Values], bool]
    words: str
    """Complete "has no effect while ...", and the remedy."""


def _is(option: str, *values: Any) -> Callable[[Values], bool]:
    table, _, key = option.partition(".")
    return lambda v: v[table][key] in values


def _switch(table: str, key: str = "enable") -> Idle:
    option = f"{table}.{key}"
    words = f"{option} is false. Set it to true"
    return Idle((f"{table}.*",), (option,), _is(option, False), words)


def _is_dense(values: Values) -> bool:
    """Of the recipe's own decoder by its number of experts: the flavour's, unless overridden."""
    from recipes.models.shapes import FLAVORS

    model = values["model"]
    if model["name"] != "nitp" or model["flavor"] not in FLAVORS:
        return False
    return not model.get("num_experts", FLAVORS[model["flavor"]].num_experts)


RULES = (
    _switch("checkpoint"),
    _switch("validation"),
    Idle(
        ("validation.steps",), ("validation.sets", "data.validation_fraction"),
        lambda v: bool(v["validation"]["sets"]) and v["data"]["validation_fraction"] == 0,
        "validation.sets, which are read whole, are all there is to validate on. Raise "
        "data.validation_fraction",
    ),
    _switch("compile"),
    _switch("float8"),
    _switch("export"),
    Idle(
        ("nitp.*",), ("nitp.enable",), _is("nitp.enable", False),
        "nitp.enable is false: the run is the next-token baseline. Set it to true",
    ),
    Idle(
        ("nitp.*", "float8.projector"), ("nitp.enable", "nitp.weight"), _is("nitp.weight", 0.0),
        "nitp.weight is 0: the run is the next-token baseline. Raise it",
    ),
    Idle(
        ("float8.projector",), ("nitp.enable",), _is("nitp.enable", False),
        "nitp.enable is false: the run has no projector. Set it to true",
    ),
    Idle(
        ("nitp.target_layer", "nitp.shift", "nitp.stop_gradient", "nitp.projector"),
        ("nitp.loss",), _is("nitp.loss", "token_cosine"),
        'nitp.loss is "token_cosine", which has no target. Choose another loss',
    ),
    Idle(
        ("nitp.projector_ratio",), ("nitp.projector", "nitp.loss"),
        lambda v: v["nitp"]["projector"] == "none" or v["nitp"]["loss"] == "token_cosine",
        'the run has no projector. Set nitp.projector to "swiglu" and choose a loss with a target',
    ),
    Idle(
        ("geometry.*",), ("geometry.enable",), _is("geometry.enable", False),
        "geometry.enable is false: nothing is measured. Set it to true",
    ),
    Idle(
        ("model.num_dense_layers", "model.num_shared_experts", "model.top_k", "model.expert_dim",
         "model.router_score_func", "model.expert_bias_rate", "debug.moe_force_load_balance"),
        ("model.num_experts", "model.flavor"), _is_dense,
        "the model has no experts. Set model.num_experts, or choose another model.flavor",
    ),
    Idle(
        ("checkpoint.interval", "checkpoint.keep_latest_k", "checkpoint.async_mode",
         "checkpoint.last_save_model_only", "checkpoint.last_save_in_hf",
         "checkpoint.enable_first_step_checkpoint"),
        ("checkpoint.load_only",), _is("checkpoint.load_only", True),
        "checkpoint.load_only is true: nothing is saved. Set it to false",
    ),
    Idle(
        ("checkpoint.export_dtype",), ("checkpoint.last_save_model_only",),
        _is("checkpoint.last_save_model_only", False),
        "checkpoint.last_save_model_only is false. For exported weights see export.dtype; leave it",
    ),
    Idle(
        ("checkpoint.initial_load_model_only", "checkpoint.allow_pickle"),
        ("checkpoint.initial_load_path",), _is("checkpoint.initial_load_path", None),
        "checkpoint.initial_load_path is not set. Set it",
    ),
    Idle(
        ("checkpoint.allow_pickle",), ("checkpoint.initial_load_in_hf",),
        _is("checkpoint.initial_load_in_hf", True),
        "checkpoint.initial_load_in_hf is true: safetensors have no pickles. Leave it",
    ),
    Idle(
        ("lr_scheduler.decay_type", "lr_scheduler.min_lr_factor"), ("lr_scheduler.decay_ratio",),
        _is("lr_scheduler.decay_ratio", 0.0),
        "lr_scheduler.decay_ratio is 0: the learning rate does not decay. Raise it",
    ),
    Idle(
        ("parallelism.enable_sequence_parallel", "compile.enable_async_tensor_parallel"),
        ("parallelism.tensor_parallel_degree",), _is("parallelism.tensor_parallel_degree", 1),
        "parallelism.tensor_parallel_degree is 1. Raise it",
    ),
    Idle(
        ("parallelism.context_parallel_*",), ("parallelism.context_parallel_degree",),
        _is("parallelism.context_parallel_degree", 1),
        "parallelism.context_parallel_degree is 1. Raise it",
    ),
    Idle(
        ("parallelism.context_parallel_ptrr_mask_key",),
        ("parallelism.context_parallel_load_balancer", "parallelism.context_parallel_degree"),
        lambda v: v["parallelism"]["context_parallel_load_balancer"] != "ptrr",
        'parallelism.context_parallel_load_balancer is not "ptrr". Set it to that',
    ),
    Idle(
        ("parallelism.pipeline_parallel_*", "parallelism.module_fqns_per_model_part"),
        ("parallelism.pipeline_parallel_degree",), _is("parallelism.pipeline_parallel_degree", 1),
        "parallelism.pipeline_parallel_degree is 1. Raise it",
    ),
    Idle(
        ("optimizer.decay_norms_and_embeddings",), ("optimizer.weight_decay",),
        _is("optimizer.weight_decay", 0.0),
        "optimizer.weight_decay is 0: nothing decays. Raise it",
    ),
    Idle(
        ("data.shuffle_buffer", "data.seed"), ("data.shuffle",), _is("data.shuffle", False),
        "data.shuffle is false. Set it to true",
    ),
    Idle(
        ("metrics.save_tb_folder",), ("metrics.enable_tensorboard",),
        _is("metrics.enable_tensorboard", False),
        "metrics.enable_tensorboard is false. Set it to true",
    ),
    Idle(
        ("metrics.save_for_all_ranks",), ("metrics.enable_tensorboard", "metrics.enable_wandb"),
        lambda v: not v["metrics"]["enable_tensorboard"] and not v["metrics"]["enable_wandb"],
        "metrics.enable_tensorboard is false. Set it to true",
    ),
    Idle(
        ("profiler.save_traces_folder", "profiler.profiler_*"),
        ("profiler.enable_profiling",), _is("profiler.enable_profiling", False),
        "profiler.enable_profiling is false. Set it to true",
    ),
    Idle(
        ("profiler.profile_freq",),
        ("profiler.enable_profiling", "profiler.enable_memory_snapshot",
         "profiler.memory_snapshot_freq"),
        lambda v: not v["profiler"]["enable_profiling"]
        and (not v["profiler"]["enable_memory_snapshot"]
             or v["profiler"]["memory_snapshot_freq"] is not None),
        "profiler.enable_profiling is false. Set it to true",
    ),
    Idle(
        ("profiler.memory_snapshot_*", "profiler.save_memory_snapshot_folder"),
        ("profiler.enable_memory_snapshot",), _is("profiler.enable_memory_snapshot", False),
        "profiler.enable_memory_snapshot is false. Set it to true",
    ),
    Idle(
        ("comm.save_traces_folder", "comm.save_traces_file_prefix"), ("comm.trace_buf_size",),
        _is("comm.trace_buf_size", 0), "comm.trace_buf_size is 0. Raise it",
    ),
    Idle(
        ("debug.deterministic_warn_only",), ("debug.deterministic",),
        _is("debug.deterministic", False), "debug.deterministic is false. Set it to true",
    ),
)  # fmt: skip


def find_idle(values: Values) -> Iterator[tuple[str, Idle]]:
    """Each option that the others make idle, with the rule that says so."""
    for rule in RULES:
        if not rule.holds(values):
            continue
        for table, entries in values.items():
            for key in entries:
                name = f"{table}.{key}"
                is_meant = any(fnmatchcase(name, pattern) for pattern in rule.options)
                if is_meant and name not in rule.switches:
                    yield name, rule


def depends_on(option: str, switch: str) -> bool:
    """Whether it is the switch, or can be idle by it."""
    return option == switch or any(
        switch in rule.switches and any(fnmatchcase(option, p) for p in rule.options)
        for rule in RULES
    )


def settle_idle(values: Values, rank: Mapping[str, int], schema: Schema) -> None:
    """Give idle options of `values` their defaults, in place.

    rank: how specific what set an option is; options at their defaults are absent. Raises
    ValueError for an option that is set to something else, in vain, as specifically as what makes
    it idle or more so.
    """
    for name, rule in list(find_idle(values)):
        table, _, key = name.partition(".")
        default = _find_default(name, values, schema)
        if name not in rank or values[table][key] == default:
            continue
        is_off = rank[name] < max(rank.get(switch, -1) for switch in rule.switches)
        if name in NEVER_OFF or not is_off:
            raise ValueError(
                f"{name} ({show_value(values[table][key])}) has no effect while {rule.words}, or "
                f"leave {name} out."
            )
        values[table][key] = default


def _find_default(name: str, values: Values, schema: Schema) -> Any:
    """The option's default; of the model's shape, the flavour's."""
    from recipes.models.shapes import FLAVORS

    table, _, key = name.partition(".")
    option = schema[table][key]
    if option.default is MISSING:
        return getattr(FLAVORS[values["model"]["flavor"]], key)
    return convert_value(option.default, option.type)
