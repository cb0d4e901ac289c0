"""The names of Wan's parameters in the original code ("native"), and in diffusers and transformers.

The transformer's and the VAE's table is not written here: the installed diffusers tells where each native name goes,
for a generous list of them, and those that the model at hand owns are kept. So the table follows the library, and a
parameter that the library cannot place is an error instead of a guess. For UMT5 no library has a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers


def _with_leaves(*layers: str) -> tuple[str, ...]:
    return tuple(f"{layer}.{leaf}" for layer, leaf in product(layers, ("weight", "bias")))


OUTSIDE_BLOCKS = (
    *_with_leaves("patch_embedding", "time_projection.1", "head.head"),
    *_with_leaves("time_embedding.0", "time_embedding.2", "text_embedding.0", "text_embedding.2"),
    "head.modulation",
)
ATTENTION = _with_leaves("q", "k", "v", "o", "norm_q", "norm_k")
IN_A_BLOCK = (
    "modulation",
    *_with_leaves("norm1", "norm2", "norm3", "ffn.0", "ffn.2"),
    *(f"{attention}.{part}" for attention, part in product(("self_attn", "cross_attn"), ATTENTION)),
)
VAE_SIDES = {"encoder": "downsamples", "decoder": "upsamples"}
IN_A_VAE_BLOCK = (
    *_with_leaves("residual.2", "residual.6", "shortcut", "resample.1", "time_conv", "to_qkv", "proj"),
    *("residual.0.gamma", "residual.3.gamma", "norm.gamma"),
)
IN_A_TEXT_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
OUTSIDE_TEXT_BLOCKS = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}


def native_names(names: Iterable[str]) -> dict[str, str]:
    """Native names of a Wan T2V transformer's parameters, by those that diffusers gives them.

    Raises:
        ValueError: when some have none, or would have two: it is not a Wan T2V transformer.
    """
    names = list(names)
    inside = (f"blocks.{i}.{name}" for i, name in product(range(_blocks(names, "blocks.")), IN_A_BLOCK))
    return _by_name(convert_wan_transformer_to_diffusers, [*OUTSIDE_BLOCKS, *inside], names)


def native_vae_names(names: Iterable[str]) -> dict[str, str]:
    """Native names of a Wan 2.1 VAE's parameters, by those that diffusers gives them; raises as above."""
    names = list(names)
    natives = list(_with_leaves("conv1", "conv2"))
    for side, stack in VAE_SIDES.items():
        natives += [*_with_leaves(f"{side}.conv1", f"{side}.head.2"), f"{side}.head.0.gamma"]
        natives += [f"{side}.middle.{i}.{name}" for i, name in product(range(3), IN_A_VAE_BLOCK)]
        natives += [f"{side}.{stack}.{i}.{name}" for i, name in product(range(len(names)), IN_A_VAE_BLOCK)]
    return _by_name(convert_wan_vae_to_diffusers, natives, names)


def native_text_names(names: Iterable[str]) -> dict[str, str]:
    """Native names of a UMT5 encoder's parameters, by those that transformers gives them; raises as above."""
    names = list(names)
    table = dict(OUTSIDE_TEXT_BLOCKS)
    for i in range(_blocks(names, "encoder.block.")):
        table |= {f"blocks.{i}.{a}.weight": f"encoder.block.{i}.{b}.weight" for a, b in IN_A_TEXT_BLOCK.items()}
    return _by_name(lambda placeholders: {table[native]: native for native in placeholders}, list(table), names)


def _by_name(
    convert: Callable[[dict[str, str]], dict[str, str]], natives: Iterable[str], names: list[str]
) -> dict[str, str]:
    """{name: native} over all ``names``, from a library's renaming of {native: native}."""
    found: dict[str, str] = {}
    wanted = set(names)
    for native in natives:
        (name,) = convert({native: native})
        if name in found:
            raise ValueError(f"'{name}' would have two native names: '{found[name]}' and '{native}'")
        if name in wanted:
            found[name] = native
    if nameless := sorted(wanted - found.keys()):
        raise ValueError(f"{len(nameless)} parameters have no native name, such as '{nameless[0]}'")
    return {name: found[name] for name in names}


def _blocks(names: Iterable[str], prefix: str) -> int:
    """One more than the highest number after ``prefix``."""
    numbers = (name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
