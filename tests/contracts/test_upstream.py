"""What this project relies on in TorchTitan and PyTorch, frozen: an upgrade that moves it fails
here and not in a training run."""

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed._functional_collectives import all_to_all_single
from torch.distributed.tensor.experimental._context_parallel import _attention as cp_attention
from torchtitan.components import loss, metrics, validate
from torchtitan.config import ParallelismConfig
from torchtitan.distributed import full_dtensor
from torchtitan.models.common import (
    attention,
    decoder,
    decoder_sharding,
    moe,
    token_dispatcher,
)
from torchtitan.models.qwen3 import qwen3_configs
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.protocols.module import Module
from torchtitan.tools import utils
from torchtitan.trainer import Trainer

from nitp._torchtitan import count_stages, split_into_stages


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_pipeline_stages_can_be_told_from_the_configuration():
    dims, model = SimpleNamespace(pp=2), SimpleNamespace(layers=[None] * 2)
    parallelism = ParallelismConfig(
        pipeline_parallel_degree=2, pipeline_parallel_schedule="Interleaved1F1B"
    )
    assert split_into_stages(*count_stages(dims, parallelism, model)) == [
        ["tok_embeddings"], ["layers.0"], ["layers.1"], ["norm", "lm_head"],
    ]  # fmt: skip


def test_the_chunked_loss_hands_its_gradient_to_an_overridable_bridge():
    assert parameters(loss.ChunkedLossWrapper._gradient_backprop) == [
        "hidden_states", "accumulated_grad", "total_loss", "lm_head", "fsdp_enabled",
    ]  # fmt: skip
    assert "self._gradient_backprop(" in inspect.getsource(loss.ChunkedLossWrapper.__call__)
    assert parameters(loss.GradAccumulator.__init__) == [
        "self", "reference", "num_chunks", "seq_dim", "dtype",
    ]  # fmt: skip


def test_a_decoder_that_is_told_to_returns_hidden_states():
    assert decoder.Decoder._skip_lm_head is False
    assert "self._skip_lm_head" in inspect.getsource(decoder.Decoder.forward)


def test_the_trainer_has_the_seams_that_nitp_overrides():
    assert parameters(Trainer.train_step) == ["self", "data_iterator"]
    source = inspect.getsource(Trainer.post_dataloading_process)
    assert 'if k != "input"' in source, "other inputs must reach the model as keyword arguments"
    assert parameters(validate.Validator.post_dataloading_process) == [
        "self", "input_dict", "labels", "model_parts",
    ]  # fmt: skip
    assert parameters(metrics.MetricsProcessor.log) == [
        "self", "step", "global_avg_loss", "global_max_loss", "grad_norm", "extra_metrics",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("common/decoder.py", "Decoder"),
        ("qwen3_5/model.py", "Qwen35Model"),
        ("muse_glimmer/model.py", "MuseGlimmerModel"),
    ],
)
def test_decoders_run_their_layers_from_values_and_pass_the_stream_first(path, name):
    """TappedLayers stands between: `for layer in self.layers.values(): h = layer(h, ...)`.

    Read as source: some of TorchTitan's models import packages that it does not require.
    """
    models = Path(decoder.__file__).parents[1]
    classes = [
        n for n in ast.parse((models / path).read_text()).body if isinstance(n, ast.ClassDef)
    ]
    (model,) = [node for node in classes if node.name == name]
    (forward,) = [n for n in model.body if getattr(n, "name", "") == "forward"]
    loops = [node for node in ast.walk(forward) if isinstance(node, ast.For)]
    assert [ast.unparse(loop.iter) for loop in loops] == ["self.layers.values()"]
    (call,) = [node for node in ast.walk(loops[0]) if isinstance(node, ast.Assign)]
    assert isinstance(call.value, ast.Call)
    assert ast.unparse(call.targets[0]) == ast.unparse(call.value.args[0])


def test_the_qwen3_adapter_maps_by_a_table_of_names():
    """recipes.models.hf.mapping adds to the table what Glm4Moe has beyond it."""
    adapter = Qwen3StateDictAdapter(qwen3_configs["debugmodel"](attn_backend="flex"), None)
    table = adapter.from_hf_map
    assert table["model.layers.{}.mlp.gate.weight"] == "layers.{}.moe.router.gate.weight"
    assert "self.from_hf_map.items()" in inspect.getsource(Qwen3StateDictAdapter.to_hf)
    assert "self.from_hf_map[abstract_key]" in inspect.getsource(Qwen3StateDictAdapter.from_hf)


def test_children_are_initialised_in_order_of_registration():
    assert "queue = list(self.children())" in inspect.getsource(Module.init_states)


def test_sharding_helpers_keep_their_signatures():
    assert parameters(decoder_sharding.dense_param_placement) == ["tp"]
    assert parameters(full_dtensor.resolve_fsdp_mesh) == ["parallel_dims"]


def test_the_cpu_platform_finds_what_it_replaces():
    assert callable(torch._utils._get_available_device_type)
    assert attention._compiled_create_block_mask is not None
    source = inspect.getsource(cp_attention._create_cp_block_mask)
    assert "if _compiled_create_block_mask is None" in source, "it may be given beforehand"
    assert parameters(utils.get_peak_flops) == ["device_name"]
    assert parameters(moe.GroupedExperts.forward) == ["self", "x_RD", "num_tokens_per_expert_E"]
    assert parameters(attention.FlexAttention.forward) == [
        "self", "q_BLNH", "k_BLNH", "v_BLNH", "attention_masks", "score_mod", "scale",
        "enable_gqa", "out_transform", "kwargs",
    ]  # fmt: skip
    assert parameters(all_to_all_single) == [
        "self", "output_split_sizes", "input_split_sizes", "group", "tag",
    ]  # fmt: skip
    dispatcher = token_dispatcher.AllToAllTokenDispatcher
    assert parameters(dispatcher._dispatch_token_exchange) == [
        "self", "routed_input_ND", "pg", "output_splits", "input_splits",
    ]  # fmt: skip
    assert parameters(dispatcher._combine_token_exchange) == [
        "self", "routed_output_RD", "pg", "input_splits", "output_splits",
    ]  # fmt: skip
    assert "self._dispatch_token_exchange(" in inspect.getsource(dispatcher.dispatch)
    assert "self._combine_token_exchange(" in inspect.getsource(dispatcher.combine)
