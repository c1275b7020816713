"""MiniGPT-4 (Zhu et al. 2024) against a PyTorch version of it written here, whose tensors have its authors' names.

The image encoder, the Q-Former without its text side, the projection and what is put together of them are written
here; the LLaMA is that of `transformers`.
"""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blip2s import long
from huggingface import array, close, close_trees, pixels
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.objectives import next_token
from vitvlm.pretrained import minigpt4
from vitvlm.pretrained.entries import in_memory
from vitvlm.pretrained.tables import Table

WIDTH, HEADS, DEPTH, MLP, PATCH, SIDE = 24, 3, 2, 36, 4, 12
Q_WIDTH, Q_HEADS, Q_DEPTH, Q_MLP, M = 16, 4, 3, 20, 5
T_WIDTH, T_HEADS, VOCAB = 16, 4, 40
ASKED = {"image_heads": HEADS, "query_heads": Q_HEADS, "text_heads": T_HEADS, "text_norm_eps": 1e-5}


def attend(query, key, value, heads):
    """Scaled dot products of [B, N, D] with [B, S, D]."""
    query, key, value = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class EvaAttention(nn.Module):
    """Self-attention whose keys have no bias."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        bias = torch.cat([self.q_bias, torch.zeros(WIDTH), self.v_bias])
        return self.proj(attend(*F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1), HEADS))


class EvaBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = EvaAttention()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, MLP), "fc2": nn.Linear(MLP, WIDTH)})

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Eva(nn.Module):
    """The image encoder, without a norm behind it."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (SIDE // PATCH) ** 2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.ModuleList(EvaBlock() for _ in range(DEPTH))

    def forward(self, images):
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


def sublayer(context=None):
    """Parameters of a post-norm attention, by BERT's names."""
    wide = Q_WIDTH if context is None else context
    own = {"query": nn.Linear(Q_WIDTH, Q_WIDTH), "key": nn.Linear(wide, Q_WIDTH), "value": nn.Linear(wide, Q_WIDTH)}
    return nn.ModuleDict({"self": nn.ModuleDict(own), "output": output(Q_WIDTH)})


def output(inside):
    return nn.ModuleDict({"dense": nn.Linear(inside, Q_WIDTH), "LayerNorm": nn.LayerNorm(Q_WIDTH, eps=1e-12)})


def attended(layer, x, context=None):
    own, out = layer["self"], layer["output"]
    seen = x if context is None else context
    mixed = attend(own["query"](x), own["key"](seen), own["value"](seen), Q_HEADS)
    return out["LayerNorm"](x + out["dense"](mixed))


class MiniGPT4(nn.Module):
    """The whole model: image tokens among those of a prompt, and an answer that is learned."""

    def __init__(self):
        super().__init__()
        self.visual_encoder, self.ln_vision = Eva(), nn.LayerNorm(WIDTH)
        self.query_tokens = nn.Parameter(torch.zeros(1, M, Q_WIDTH))
        layers = nn.ModuleList()
        for i in range(Q_DEPTH):
            layer = {"attention": sublayer(), "intermediate_query": nn.ModuleDict({"dense": nn.Linear(Q_WIDTH, Q_MLP)})}
            layer |= {"output_query": output(Q_MLP)} | ({} if i % 2 else {"crossattention": sublayer(WIDTH)})
            layers.append(nn.ModuleDict(layer))
        norm = nn.ModuleDict({"LayerNorm": nn.LayerNorm(Q_WIDTH, eps=1e-12)})
        bert = nn.ModuleDict({"embeddings": norm, "encoder": nn.ModuleDict({"layer": layers})})
        self.Qformer = nn.ModuleDict({"bert": bert})
        self.llama_proj = nn.Linear(Q_WIDTH, T_WIDTH)
        sizes = {"vocab_size": VOCAB, "hidden_size": T_WIDTH, "intermediate_size": 20, "num_hidden_layers": 2}
        llama = LlamaConfig(**sizes, num_attention_heads=T_HEADS, rms_norm_eps=1e-5, tie_word_embeddings=False)
        self.llama_model = LlamaForCausalLM(llama)

    def encode(self, images):
        image = self.ln_vision(self.visual_encoder(images))
        bert = self.Qformer["bert"]
        x = bert["embeddings"]["LayerNorm"](self.query_tokens.expand(len(image), -1, -1))
        for layer in bert["encoder"]["layer"]:
            x = attended(layer["attention"], x)
            if "crossattention" in layer:
                x = attended(layer["crossattention"], x, image)
            out = layer["output_query"]
            x = out["LayerNorm"](x + out["dense"](F.gelu(layer["intermediate_query"]["dense"](x))))
        return self.llama_proj(x)

    def forward(self, images, before, after, answer):
        """The prompt's two parts and the answer as ids [B, L]; returns image tokens, logits and the loss."""
        embed = self.llama_model.get_input_embeddings()
        image = self.encode(images)
        whole = torch.cat([embed(before), image, embed(after), embed(answer)], dim=1)
        labels = torch.full(whole.shape[:2], -100)
        labels[:, -answer.shape[1] :] = answer
        out = self.llama_model(inputs_embeds=whole, labels=labels)
        return image, out.logits, out.loss


RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
BEFORE, AFTER, ANSWER = (RNG.integers(3, VOCAB, size=(2, n)) for n in (4, 3, 5))


@functools.cache
def reference():
    torch.manual_seed(0)
    theirs = MiniGPT4().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    path = Path(tempfile.mkdtemp()) / "minigpt4.pth"
    torch.save({"model": theirs.state_dict(), "epoch": 3}, path)
    expected = theirs(pixels(IMAGES), long(BEFORE), long(AFTER), long(ANSWER))
    expected[2].backward()
    return theirs, path, expected


@pytest.mark.parametrize("by_id", [True, False])
def test_image_tokens_logits_loss_and_gradients(by_id):
    """Image tokens stand where an id says it, or an index."""
    theirs, path, (image, logits, loss) = reference()
    loaded = pretrained.load(path, **ASKED)
    places = np.full((2, M), minigpt4.IMAGE_TOKEN if by_id else 0)
    texts = np.concatenate([BEFORE, places, AFTER, ANSWER], axis=1)
    given = {}
    if not by_id:
        index = np.full(texts.shape, -1)
        index[:, 4 : 4 + M] = np.arange(M)
        given["image_index"] = index

    @jax.jit
    def run(params):
        def value(params):
            out = loaded.model.apply({"params": params}, IMAGES, texts, **given)
            head = (params["text"]["head"]["kernel"], jnp.asarray(ANSWER))
            return next_token.cross_entropy(out.tokens[:, -6:-1], *head).mean(), out

        return jax.value_and_grad(value, has_aux=True)(params)

    (value, out), found = run(loaded.variables["params"])
    close(out.image_tokens[:, 0], array(image), "image tokens")
    close(out.logits, array(logits), "logits")
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    gradients = {name: array(parameter.grad) for name, parameter in theirs.named_parameters()}
    table = Table.reading(minigpt4.rows(loaded.model, gradients), gradients)
    expected = paths.flatten(table.read(in_memory(gradients))["params"])
    # A key's bias, which is not there, is where no softmax sees it.
    close_trees(paths.flatten(jax.device_get(found)), expected)
    trained = jax.tree.leaves(loaded.variables["params"]["connector"]["projection"])
    assert sum(leaf.size for leaf in trained) == sum(each.numel() for each in theirs.llama_proj.parameters())


def test_sizes_are_read_from_the_shapes_and_the_rest_is_said(tmp_path, caplog):
    _, path, _ = reference()
    model = pretrained.load(path, **ASKED).model
    assert "layout: MiniGPT-4" in caplog.text and "text.length=2048" in caplog.text
    assert (model.image.depth, model.image.image_size, model.connector.cross_every) == (DEPTH, SIDE, 2)
    assert model.connector.queries == M and model.text.kv_heads == T_HEADS and model.keep_prefix
    alone = {f"llama_proj.{name}": torch.zeros(2) for name in ("weight", "bias")}
    torch.save({"model": alone}, tmp_path / "projection.pth")
    with pytest.raises(pretrained.WeightsError, match="MiniGPT-4's projection alone, without what it connects"):
        pretrained.load(tmp_path / "projection.pth")
