"""The tensors of open_clip's CLIP (OpenAI's names too), CustomTextCLIP and CoCa.

open_clip's names are those of OpenAI's code: `visual.…`, and the text tower's at the root, or under `text.` for a
CustomTextCLIP and for CoCa, whose decoder is `text_decoder.…`.
"""

from collections.abc import Collection, Iterable, Iterator

from vitvlm.models.coca import CoCa
from vitvlm.models.text import TextTransformer
from vitvlm.models.two_towers import TwoTowers
from vitvlm.models.vit import ViT
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import (
    conv,
    dense,
    layer_norm,
    linear,
    position_embedding,
    qkv,
    qkv_bias,
    same,
    unused,
)

OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # tensors in OpenAI's own files


def clip_rows(model: TwoTowers, names: Collection[str], text: str = "") -> Iterator[Row]:
    """A CLIP; the names of its text tower begin with `text`."""
    yield from _shared_rows(model, text)
    yield from layer_norm("visual.ln_post", "image/norm")
    for name in names:
        if name in OPENAI_NUMBERS:
            yield row(name, (), unused(()))


def coca_rows(model: CoCa, names: Collection[str]) -> Iterator[Row]:
    """Rows of a CoCa."""
    yield from _shared_rows(model, "text.")
    width = model.image.width
    if model.pooling == "joint":
        yield from layer_norm("visual.ln_post", "pool_norm")
        yield from _pool_rows("visual.attn_pool", "pool", width == model.embed_dim, "image/norm")
    else:
        yield from layer_norm("visual.ln_post", "image/norm")
    if model.pooling in ("parallel", "cascade"):
        for theirs, ours in (("attn_pool", "pool"), ("attn_pool_contrastive", "pool_one")):
            yield from _pool_rows(f"visual.{theirs}", ours, width == model.embed_dim, f"{ours}/context_norm")
    for i in range(model.decoder_depth):
        theirs, ours = "text_decoder.", f"decoder/blocks_{i}/"
        yield from under(theirs, ours, _block_rows(f"resblocks.{i}", "own"))
        yield from under(theirs, ours, _block_rows(f"cross_attn.{i}", "cross"))
        yield from under(theirs, ours, layer_norm(f"cross_attn.{i}.ln_1_kv", "cross/context_norm"))
    yield from layer_norm("text_decoder.ln_final", "decoder/norm")
    yield row("text_decoder.text_projection", "decoder/head/kernel", same)


def _shared_rows(model: TwoTowers, text: str) -> Iterator[Row]:
    """All but what CLIP and CoCa pool the image with."""
    yield row("logit_scale", "log_scale", same)
    if model.bias_init is not None:
        yield row("logit_bias", "bias", same)
    yield row("visual.proj", "project_image/out/kernel", same)
    yield from under("visual.", "image/", image_rows(model.image))
    if model.text_projection == "linear":
        yield row(f"{text}text_projection", "project_text/out/kernel", same)
    yield from under(text, "text/", _text_rows(model.text))


def image_rows(model: ViT) -> Iterator[Row]:
    """The image tower but for its last norm and projection."""
    yield row("class_embedding", "cls", same)
    yield row("conv1.weight", "patches/kernel", conv)
    places = tuple(f"positions/{name}" for name in (*model.placed, "grid"))
    yield row("positional_embedding", places, position_embedding(model.table_grid, model.placed))
    if model.pre_norm:
        yield from layer_norm("ln_pre", "pre_norm")
    yield from _transformer_rows(model.depth, model.layer_scale is not None)


def _text_rows(model: TextTransformer) -> Iterator[Row]:
    yield row("token_embedding.weight", "embed/embedding", same)
    yield row("positional_embedding", "positions", same)
    if model.pool == "cls":
        yield row("cls_emb", "cls", same)
    yield from _transformer_rows(model.depth)
    yield from layer_norm("ln_final", "norm")


def _transformer_rows(depth: int, layer_scale: bool = False) -> Iterator[Row]:
    for i in range(depth):
        theirs, ours = f"transformer.resblocks.{i}", f"blocks_{i}"
        yield from _block_rows(theirs, ours)
        if layer_scale:
            yield row(f"{theirs}.ls_1.gamma", f"{ours}/attention_scale", same)
            yield row(f"{theirs}.ls_2.gamma", f"{ours}/mlp_scale", same)


def _block_rows(theirs: str, ours: str) -> Iterable[Row]:
    yield from layer_norm(f"{theirs}.ln_1", f"{ours}/attention_norm")
    yield from _attention_rows(f"{theirs}.attn", f"{ours}/attention")
    yield from layer_norm(f"{theirs}.ln_2", f"{ours}/mlp_norm")
    yield from dense(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up")
    yield from dense(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down")


def _attention_rows(theirs: str, ours: str, fused: bool = True) -> Iterator[Row]:
    """PyTorch's MultiheadAttention; its kernels are one tensor if all take vectors of one width."""
    projections = [f"{ours}/{name}" for name in ("query", "key", "value")]
    if fused:
        yield row(f"{theirs}.in_proj_weight", tuple(f"{name}/kernel" for name in projections), qkv)
    else:
        for letter, name in zip("qkv", projections):
            yield row(f"{theirs}.{letter}_proj_weight", f"{name}/kernel", linear)
    yield row(f"{theirs}.in_proj_bias", tuple(f"{name}/bias" for name in projections), qkv_bias)
    yield from dense(f"{theirs}.out_proj", f"{ours}/out")


def _pool_rows(theirs: str, ours: str, fused: bool, context_norm: str) -> Iterator[Row]:
    """Rows of `nn.pooling.QueryPool`; the norm of its context may be the image tower's."""
    yield row(f"{theirs}.query", f"{ours}/queries", same)
    yield from layer_norm(f"{theirs}.ln_q", f"{ours}/query_norm")
    yield from layer_norm(f"{theirs}.ln_k", context_norm)
    yield from _attention_rows(f"{theirs}.attn", f"{ours}/attention", fused)
