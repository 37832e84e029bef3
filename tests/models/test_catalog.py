"""Recognising models: every number from both kinds of configuration, and clear errors for what cannot be served."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.checkpoint import Checkpoint, Entry, LazyTensors
from phloem.graph.compile import compile_graph
from phloem.graph.weights import load_raw, sources
from phloem.kernels.spec import RawWeight
from phloem.memory.spec import FullAttention
from phloem.models.catalog import FAMILIES, define_dummy, define_model
from phloem.models.dummy import CONFIGS, dummy_checkpoint

TINY = CONFIGS["llama-tiny"]


def hf(config: dict[str, Any], generation: dict[str, Any] | None = None) -> Checkpoint:
    """A folder of this configuration with the tensors that the tiny model of its family has."""
    family = config.get("model_type")
    tensors = dummy_checkpoint(f"{family if f'{family}-tiny' in CONFIGS else 'llama'}-tiny").tensors
    return Checkpoint(Path("folder"), "hf", config, tensors, generation or {})


def gguf(**changes: Any) -> Checkpoint:
    """A tiny llama's metadata with some of it changed; a change to None removes the entry."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.context_length": 512,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 7,
    }
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    table = RawWeight.from_array(np.zeros((320, 64), np.float32))
    entries = {"token_embd.weight": Entry("F32", table.num_bytes, lambda: table)}
    return Checkpoint(
        Path("file.gguf"), "gguf", {k: v for k, v in metadata.items() if v is not None}, LazyTensors(entries)
    )


def test_numbers_of_a_folder() -> None:
    """Red if a field of config.json is read into the wrong place."""
    definition = define_model(hf(CONFIGS["qwen3-tiny"]))
    dims = definition.dims
    assert definition.family.name == "qwen3"
    assert (dims.num_layers, dims.hidden, dims.num_heads, dims.num_kv_heads, dims.head_dim) == (2, 64, 4, 2, 32)
    assert (dims.ffn, dims.vocab, dims.eps, dims.max_context, dims.tied) == (128, 320, 1e-6, 512, True)
    assert definition.layers == (FullAttention(2, 32, None),) * 2
    assert (definition.bos_id, definition.eos_ids) == (None, (2,))


def test_numbers_of_a_gguf_file() -> None:
    """Red if a metadata key is read into the wrong place."""
    definition = define_model(gguf())
    dims = definition.dims
    assert (dims.num_layers, dims.hidden, dims.num_heads, dims.num_kv_heads, dims.head_dim) == (2, 64, 4, 2, 16)
    assert (dims.ffn, dims.vocab, dims.eps, dims.max_context, dims.tied) == (128, 320, 1e-5, 512, True)
    assert (definition.bos_id, definition.eos_ids) == (1, (2, 7))


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 5}, {}, (5,)),
        ({"eos_token_id": [5, 6, 5]}, {}, (5, 6)),
        ({"eos_token_id": 5}, {"eos_token_id": [8, 9]}, (8, 9)),
        ({"eos_token_id": None}, {}, ()),
    ],
)
def test_end_tokens(config, generation, expected) -> None:
    """Red if lists or generation_config.json are ignored: a chat would not end."""
    assert define_model(hf(TINY | config, generation)).eos_ids == expected


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("mistral-tiny", {"sliding_window": 9}, (9, 9)),
        ("mistral-tiny", {"sliding_window": None}, (None, None)),
        ("qwen2-tiny", {"sliding_window": 9, "use_sliding_window": False, "max_window_layers": 0}, (None, None)),
        ("qwen2-tiny", {"sliding_window": 9, "max_window_layers": 0}, (None, None)),
        ("qwen2-tiny", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1}, (None, 9)),
        (
            "qwen2-tiny",
            {"sliding_window": 9, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            (9, None),
        ),
    ],
)
def test_windows(model, options, expected) -> None:
    """Red if a layer's window is not what the configuration says, in the dims, the ledger's spec or the graph."""
    definition = define_model(hf(CONFIGS[model] | options))
    assert definition.dims.windows == expected
    assert tuple(layer.window for layer in definition.layers) == expected
    nodes = [n for n in compile_graph(definition).graph.nodes if n.name.startswith("paged_attention")]
    assert tuple(node.args[-1] for node in nodes) == expected


HF_PROBLEMS = {
    "unknown architecture 'gpt2'.*supported: llama, mistral, mixtral, qwen2, qwen3, qwen3_moe": {"model_type": "gpt2"},
    "unknown architecture None": {"model_type": None},
    "'quantization_config' says the weights are quantized \\(awq\\)": {"quantization_config": {"quant_method": "awq"}},
    "'hidden_act' is 'gelu'": {"hidden_act": "gelu"},
    "'hidden_size' is missing": {"hidden_size": None},
    "'hidden_size' is '64'": {"hidden_size": "64"},
    "'num_hidden_layers' is 2000000000": {"num_hidden_layers": 2_000_000_000},
    "'num_attention_heads' is 0": {"num_attention_heads": 0},
    "does not divide 4 heads": {"num_key_value_heads": 3},
    "expected an even number": {"head_dim": 15},
    "'rms_norm_eps' is nan": {"rms_norm_eps": float("nan")},
    "'tie_word_embeddings' is 1": {"tie_word_embeddings": 1},
    "'rope_type' is 'longrope'": {"rope_scaling": {"rope_type": "longrope"}},
    "'factor' is missing": {"rope_scaling": {"type": "linear"}},
    "'rope_scaling' is 3": {"rope_scaling": 3},
    "partial rotation": {"partial_rotary_factor": 0.5},
    "'eos_token_id' is 'end'": {"eos_token_id": "end"},
    "'layer_types' is not a list of 2": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["full_attention"],
    },
    "use for \\(lm_head.*\\)|no use for|unknown": {"model_type": "bert"},
}


@pytest.mark.parametrize("problem", HF_PROBLEMS)
def test_bad_folders_are_explained(problem: str) -> None:
    """Red if this configuration is accepted, crashes, or its error does not name the field."""
    with pytest.raises(ModelError, match=problem) as error:
        define_model(hf(TINY | HF_PROBLEMS[problem]))
    assert str(error.value).startswith("folder: ")


GGUF_PROBLEMS = {
    "unknown architecture 'mamba'.*supported: llama": {"general__architecture": "mamba"},
    "'llama.block_count' is missing": {"llama__block_count": None},
    "mixtures of experts": {"llama__expert_count": 8},
    "'llama.feed_forward_length' is \\[1, 2\\]": {"llama__feed_forward_length": [1, 2]},
    "expected the head size": {"llama__rope__dimension_count": 8},
    "'llama.rope.scaling.type' is 'longrope'": {"llama__rope__scaling__type": "longrope"},
    "does not divide": {"llama__attention__head_count_kv": 3},
}


@pytest.mark.parametrize("problem", GGUF_PROBLEMS)
def test_bad_metadata_is_explained(problem: str) -> None:
    """Red if this metadata is accepted, crashes, or its error does not name the key."""
    with pytest.raises(ModelError, match=problem):
        define_model(gguf(**GGUF_PROBLEMS[problem]))


@settings(max_examples=300, deadline=None)
@given(
    field=st.sampled_from([*TINY, "head_dim", "rope_scaling", "sliding_window", "layer_types", "architectures"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor"]), inner),
        max_leaves=4,
    ),
)
def test_any_configuration_gives_a_model_or_a_model_error(field: str, value: Any) -> None:
    """Red if a field of the wrong type or size raises anything else."""
    with suppress(ModelError):
        define_model(hf(TINY | {field: value}))


def test_a_missing_tensor_is_named_when_it_is_loaded() -> None:
    """Red if an incomplete file is not refused by name."""
    definition = define_model(gguf())
    with pytest.raises(ModelError, match=r"file\.gguf: tensor 'blk\.0\.attn_q\.weight' is missing"):
        load_raw(definition.recipes["layers.0.attention.q.weight"], definition.checkpoint)


def test_tensors_that_nothing_reads_are_refused() -> None:
    """Red if a model with more in it than its family's equations (here: biases) is served with wrong answers."""
    with pytest.raises(ModelError, match=r"no use for \(model\.layers\.0\.self_attn\.q_proj\.bias"):
        define_model(Checkpoint(Path("x"), "hf", TINY, dummy_checkpoint("qwen2-tiny").tensors))


@pytest.mark.parametrize("name", CONFIGS)
def test_dummies_have_exactly_the_tensors_of_their_family(name: str) -> None:
    """Red if a dummy lacks a tensor, or has one of another shape than the family's recipe asks for."""
    definition = define_dummy(f"dummy:{name}")
    entries = definition.checkpoint.tensors.entries
    stored = {recipe.name: recipe for each in definition.recipes.values() for recipe in sources(each)}
    assert set(stored) == set(entries)
    for tensor, recipe in stored.items():
        assert entries[tensor].num_bytes == 2 * int(np.prod(recipe.shape)), tensor


PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-14b": 14_768_307_200,
    "mistral-7b": 7_241_732_096,
    "qwen3-30b-a3b": 30_532_122_624,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_dummies_have_the_published_number_of_parameters(name: str) -> None:
    """Red if a shape in the table is wrong: the counts are those of the published checkpoints."""
    entries = dummy_checkpoint(name).tensors.entries.values()
    assert sum(entry.num_bytes for entry in entries) == 2 * PARAMETERS[name]


def test_dummy_weights_are_deterministic_and_tame() -> None:
    """Red if weights change from run to run, or are all alike, or would blow activations up."""
    once, again = (dummy_checkpoint("llama-tiny").tensors["model.layers.1.mlp.up_proj.weight"] for _ in range(2))
    assert np.array_equal(once.data, again.data)
    other = dummy_checkpoint("llama-tiny").tensors["model.layers.0.mlp.up_proj.weight"]
    assert not np.array_equal(once.data, other.data)
    assert once.dequantize().std() == pytest.approx(64**-0.5, rel=0.05)
    assert dummy_checkpoint("llama-tiny").tensors["model.norm.weight"].dequantize().mean() == pytest.approx(1, abs=0.1)


def test_unknown_dummy_lists_what_there_is() -> None:
    """Red if the error does not help."""
    with pytest.raises(ModelError, match=r"dummy:gpt-5: no such model; there are .*llama-3\.2-1b"):
        define_dummy("dummy:gpt-5")


def test_gguf_names_are_those_of_the_gguf_package() -> None:
    """Red if a family's table has a GGUF name that no converter writes."""
    constants = pytest.importorskip("gguf.constants")
    known = {name for tensors in constants.TENSOR_NAMES.values() for name in [tensors]}
    for family in (each for each in FAMILIES if each.architectures):
        for _, name in family.names.values():
            base = name.rpartition(".")[0].replace("{}", "{bid}")
            assert base in known, name
