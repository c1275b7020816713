"""OpenFlamingo in plain PyTorch around a LLaMA of `transformers`: its tensors' names, and its arithmetic written anew.

From the paper's equations (Alayrac et al. 2022, sections 2.1 to 2.3 and appendix A.1) and the released checkpoints'
names: CLIP's image tower as open_clip has it, a perceiver, and a LLaMA whose layers are wrapped.
"""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, HEAD_DIM = 8, 64  # of all their new attention


def attend(query, key, value, heads, mask=None, kept=None):
    """softmax(q k^T / sqrt(d)) v by heads; rows of the mask without any True give zero."""
    B, N, _ = query.shape
    query, key, value = (x.view(B, x.shape[1], heads, -1).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e30)
    weights = scores.softmax(-1)
    if mask is not None:
        weights = weights * mask.any(-1, keepdim=True)
    if kept is not None and weights.requires_grad:
        weights.retain_grad()
        kept.append(weights)
    return (weights @ value).transpose(1, 2).reshape(B, N, -1)


def feed_forward(width):
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


class VisionBlock(nn.Module):
    def __init__(self, width, heads, mlp_width):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, mlp_width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(mlp_width, width))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Vision(nn.Module):
    """The tokens of the patches after the last block, before the last norm, which they do not pass."""

    def __init__(self, width, depth, heads, mlp_width, patch, size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + (size // patch) ** 2, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(VisionBlock(width, heads, mlp_width) for _ in range(depth))
        self.proj = nn.Parameter(torch.zeros(width, width))

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(patches), 1, -1)
        x = self.ln_pre(torch.cat([cls, patches], dim=1) + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return x[:, 1:]


class PerceiverAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features, latents):
        latents = self.norm_latents(latents)
        seen = torch.cat([self.norm_media(features), latents], dim=1)
        return self.to_out(attend(self.to_q(latents), *self.to_kv(seen).chunk(2, dim=-1), HEADS))


class Perceiver(nn.Module):
    def __init__(self, width, depth, latents):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width), feed_forward(width)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features):
        latents = self.latents.expand(len(features), -1, -1)
        for attention, mlp in self.layers:
            latents = latents + attention(features, latents)
            latents = latents + mlp(latents)
        return self.norm(latents)


class MaskedCrossAttention(nn.Module):
    def __init__(self, width, vision_width):
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(vision_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x, media, sees, kept):
        keys, values = self.to_kv(media).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(self.norm(x)), keys, values, HEADS, sees[:, None], kept))


class GatedCrossAttention(nn.Module):
    def __init__(self, width, vision_width):
        super().__init__()
        self.attn, self.ff = MaskedCrossAttention(width, vision_width), feed_forward(width)
        self.attn_gate, self.ff_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x, media, sees, kept):
        x = x + self.attn(x, media, sees, kept) * self.attn_gate.tanh()
        return x + self.ff(x) * self.ff_gate.tanh()


class Layer(nn.Module):
    """A language model's layer with what stands before it; what it looks at is left here by `OpenFlamingo`."""

    def __init__(self, gated, decoder_layer):
        super().__init__()
        self.gated_cross_attn_layer, self.decoder_layer = gated, decoder_layer

    def forward(self, x, **call):
        if self.gated_cross_attn_layer is not None:
            x = self.gated_cross_attn_layer(x, self.media, self.sees, self.kept)
        return self.decoder_layer(x, **call)


class OpenFlamingo(nn.Module):
    """`every`: a gated layer stands before each such layer of the language model, from the `every`-th on."""

    def __init__(self, vision, text: LlamaConfig, latents, depth, every, image_token):
        super().__init__()
        self.vision_encoder = Vision(**vision)
        self.perceiver = Perceiver(vision["width"], depth, latents)
        self.lang_encoder = LlamaForCausalLM._from_config(text, attn_implementation="eager")
        self.image_token = image_token
        layers = self.lang_encoder.model.layers
        for i in range(len(layers)):
            looks = (i + 1) % every == 0
            gated = GatedCrossAttention(text.hidden_size, vision["width"]) if looks else None
            layers[i] = Layer(gated, layers[i])

    def condition(self, images, texts):
        """Encodes images [B, I, C, H, W], and says which of them each token of the texts sees."""
        B, count = images.shape[:2]
        media = self.perceiver(self.vision_encoder(images.flatten(0, 1)))
        before = (texts == self.image_token).cumsum(1)
        sees = before[:, :, None] == torch.arange(1, count + 1)
        sees, kept = sees.repeat_interleave(media.shape[1], dim=2), []
        for layer in self.lang_encoder.model.layers:
            layer.media, layer.sees, layer.kept = media.reshape(B, -1, media.shape[-1]), sees, kept
        return kept

    def forward(self, images, texts, mask=None, **call):
        """Returns the language model's output, and the weights of the gated layers' attention."""
        kept = self.condition(images, texts)
        return self.lang_encoder(input_ids=texts, attention_mask=mask, **call), kept

    @torch.no_grad()
    def greedy(self, images, texts, count):
        """The ids that follow, without a cache; new tokens see the last image."""
        start = texts.shape[1]
        for _ in range(count):
            out, _ = self(images, texts, use_cache=False)
            texts = torch.cat([texts, out.logits[:, -1:].argmax(-1)], dim=1)
        return texts[:, start:]
