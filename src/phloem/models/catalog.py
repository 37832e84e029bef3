"""Which model is this? From a checkpoint to a definition; from `dummy:<name>` to one with random weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.graph.weights import Concat, Constant, Rows, Stored, WeightRecipe, sources
from phloem.models import llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, read_gguf, read_hf
from phloem.models.definition import Dims, Family, ModelDefinition
from phloem.models.dummy import dummy_checkpoint
from phloem.models.fields import Fields

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
)
HARMLESS = re.compile(
    r"(rotary_emb\.inv_freq|^rope_freqs\.weight|^lm_head\.weight|^output\.weight)$"
)  # derived or tied
EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")  # each ends a turn in some model's GGUF


def define_model(checkpoint: Checkpoint) -> ModelDefinition:
    """Recognise the family and read its numbers; ModelError where it is unknown or they make no sense.

    No tensor is read yet; names and shapes are checked as the recipes are carried out.
    """
    family = _recognise(checkpoint)
    dims = (read_gguf if checkpoint.kind == "gguf" else read_hf).read_dims(checkpoint)
    bos_id, eos_ids = _special_ids(checkpoint)
    return ModelDefinition(
        family=family,
        dims=dims,
        checkpoint=checkpoint,
        recipes=_recipes(family, dims, checkpoint),
        bos_id=bos_id,
        eos_ids=eos_ids,
    )


def define_dummy(name: str) -> ModelDefinition:
    """The model `dummy:<name>`: the exact shapes of a named model with deterministic random weights."""
    return define_model(dummy_checkpoint(name.removeprefix("dummy:")))


def _recognise(checkpoint: Checkpoint) -> Family:
    config = checkpoint.config
    if checkpoint.kind == "gguf":
        named = [config.get("general.architecture")]
        families = {name: family for family in FAMILIES for name in family.architectures}
    else:
        named = [config.get("model_type")]
        families = {name: family for family in FAMILIES for name in family.model_types}
    for name in named:
        if isinstance(name, str) and name in families:
            return families[name]
    what = config.get("architectures") if checkpoint.kind == "hf" else None
    raise ModelError(
        f"{checkpoint.path}: unknown architecture {named[0]!r}{f' {what}' if what else ''};"
        f" supported: {', '.join(families)}",
        field=str(checkpoint.path),
    )


def _special_ids(checkpoint: Checkpoint) -> tuple[int | None, tuple[int, ...]]:
    """Beginning and end of a sequence; generation_config.json has the last word."""
    config = Fields(checkpoint.path, checkpoint.config)
    if checkpoint.kind == "gguf":
        tokens = Fields(checkpoint.path, checkpoint.config, prefix="tokenizer.ggml.")
        eos = [token_id for key in EOS_KEYS for token_id in tokens.ids(key)]
        bos = tokens.ids("bos_token_id")
    else:
        generation = Fields(checkpoint.path, checkpoint.generation_config)
        eos = list(generation.ids("eos_token_id") or config.ids("eos_token_id"))
        bos = generation.ids("bos_token_id") or config.ids("bos_token_id")
    return (bos[0] if bos else None), tuple(dict.fromkeys(eos))


def _recipes(family: Family, dims: Dims, checkpoint: Checkpoint) -> Mapping[str, WeightRecipe]:
    """One recipe for each parameter of the family's module, by the family's table of names."""
    column = 1 if checkpoint.kind == "gguf" else 0
    recipes: dict[str, WeightRecipe] = {"inv_freq": Constant(dims.rope.inv_freq)}
    for parameter, value in family.model(dims).named_parameters():
        layer = re.search(r"\d+", parameter)
        pattern = parameter.replace(f".{layer.group()}.", ".{}.", 1) if layer else parameter
        stored = family.names[pattern][column].replace("{}", layer.group() if layer else "")
        recipe = _stored(stored, tuple(value.shape), dims)
        if checkpoint.kind == "gguf" and family.gguf_interleaves and re.search(r"attention\.[qk]\.", parameter):
            recipe = Rows(recipe, _halves_first(value.shape[0], dims.head_dim))
        recipes[parameter] = recipe
    _refuse_strangers(family, recipes, checkpoint)
    return recipes


def _stored(name: str, shape: tuple[int, ...], dims: Dims) -> WeightRecipe:
    """A tensor by its name; of names with `{expert}`, the tensors of all experts below each other, `|` between an
    expert's parts."""
    if "{expert}" not in name:
        return Stored(name, shape)
    parts = name.split("|")
    part_shape = (shape[0] // (dims.num_experts * len(parts)), *shape[1:])
    names = [part.replace("{expert}", str(expert)) for expert in range(dims.num_experts) for part in parts]
    return Concat(tuple(Stored(each, part_shape) for each in names))


def _refuse_strangers(family: Family, recipes: Mapping[str, WeightRecipe], checkpoint: Checkpoint) -> None:
    """A tensor that nothing reads means that the model does more than this family's equations say."""
    read = {stored.name for recipe in recipes.values() for stored in sources(recipe)}
    strangers = [name for name in checkpoint.tensors if name not in read and not HARMLESS.search(name)]
    if strangers:
        raise ModelError(
            f"{checkpoint.path}: has tensors that the family {family.name!r} has no use for ({', '.join(strangers[:3])}"
            f"{' ...' if strangers[3:] else ''}); the model is of another architecture than its configuration says",
            field=str(checkpoint.path),
        )


def _halves_first(num_rows: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Undo llama.cpp's row order: pairs (0, 1), (2, 3) ... of each head back to (0, d/2), (1, d/2 + 1) ..."""
    pairs = np.arange(num_rows, dtype=np.intp).reshape(-1, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)
