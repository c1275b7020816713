"""nanoVLM derived anew in PyTorch from its description, with the names of its files; `save` writes a folder of it.

SigLIP's encoder without a head, a pixel shuffle and one linear map, and SmolLM2: RMSNorm, rotary positions of half
pairs, grouped queries, SwiGLU, a tied head.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

CONFIG = {
    "vit_hidden_dim": 8, "vit_inter_dim": 20, "vit_patch_size": 2, "vit_img_size": 8, "vit_n_heads": 2,
    "vit_dropout": 0.0, "vit_n_blocks": 2, "vit_ln_eps": 3e-4, "vit_cls_flag": False,
    "lm_hidden_dim": 24, "lm_inter_dim": 20, "lm_rms_eps": 3e-4, "lm_re_base": 500, "lm_max_position_embeddings": 64,
    "lm_base_vocab_size": 27, "extra_token_amount": 3, "lm_vocab_size": 30, "lm_n_heads": 4, "lm_n_kv_heads": 2,
    "lm_dropout": 0.0, "lm_n_blocks": 2, "lm_attn_scaling": 1.0, "lm_max_length": 64, "lm_tie_weights": True,
    "mp_pixel_shuffle_factor": 2, "mp_image_token_length": 4, "max_img_size": 24, "resize_to_max_side_len": True,
    "vlm_extra_tokens": {"image_token": "<|image|>", "global_image_token": "<|global_image|>", "r1c1": "<row_1_col_1>"},
}  # fmt: skip


def attend(q, k, v, seen, kept):
    """Mixes values of heads [B, heads, T, d]; `seen` is True where a query may look, `kept` collects the weights."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    weights = (scores if seen is None else scores.masked_fill(~seen, float("-inf"))).softmax(-1)
    if weights.requires_grad:
        weights.retain_grad()
    kept.append(weights)
    return (weights @ v).transpose(1, 2).flatten(2)


def heads_of(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


class VisionAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        D = c["vit_hidden_dim"]
        self.heads, self.qkv_proj, self.out_proj = c["vit_n_heads"], nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x, kept):
        q, k, v = (heads_of(part, self.heads) for part in self.qkv_proj(x).chunk(3, -1))
        return self.out_proj(attend(q, k, v, None, kept))


class VisionMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Linear(c["vit_hidden_dim"], c["vit_inter_dim"])
        self.fc2 = nn.Linear(c["vit_inter_dim"], c["vit_hidden_dim"])

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln1, self.ln2 = (nn.LayerNorm(c["vit_hidden_dim"], c["vit_ln_eps"]) for _ in range(2))
        self.attn, self.mlp = VisionAttention(c), VisionMlp(c)

    def forward(self, x, kept):
        x = x + self.attn(self.ln1(x), kept)
        return x + self.mlp(self.ln2(x))


class Patches(nn.Module):
    def __init__(self, c):
        super().__init__()
        P, D = c["vit_patch_size"], c["vit_hidden_dim"]
        self.conv = nn.Conv2d(3, D, P, P)
        self.position_embedding = nn.Parameter(torch.randn(1, (c["vit_img_size"] // P) ** 2, D) * 0.1)

    def forward(self, x):
        return self.conv(x).flatten(2).transpose(1, 2) + self.position_embedding


class VisionEncoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.patch_embedding = Patches(c)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c["vit_n_blocks"]))
        self.layer_norm = nn.LayerNorm(c["vit_hidden_dim"], c["vit_ln_eps"])

    def forward(self, x, kept):
        x = self.patch_embedding(x)
        for block in self.blocks:
            x = block(x, kept)
        return self.layer_norm(x)


class Projector(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.factor = c["mp_pixel_shuffle_factor"]
        self.proj = nn.Linear(c["vit_hidden_dim"] * self.factor**2, c["lm_hidden_dim"], bias=False)

    def forward(self, x):
        """Squares of neighbours, row by row, become the channels of one token."""
        (B, N, E), f = x.shape, self.factor
        side = math.isqrt(N)
        squares = x.reshape(B, side // f, f, side // f, f, E).permute(0, 1, 3, 2, 4, 5)
        return self.proj(squares.reshape(B, N // f**2, f * f * E))


class RMSNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(c["lm_hidden_dim"])), c["lm_rms_eps"]

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class TextAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        D, self.heads, self.kv_heads = c["lm_hidden_dim"], c["lm_n_heads"], c["lm_n_kv_heads"]
        own = D // self.heads * self.kv_heads
        self.q_proj, self.out_proj = (nn.Linear(D, D, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(D, own, bias=False) for _ in range(2))

    def forward(self, x, angles, causal, kept):
        def turned(x, heads):
            a, b = heads_of(x, heads).chunk(2, -1)
            return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

        q, k = turned(self.q_proj(x), self.heads), turned(self.k_proj(x), self.kv_heads)
        return self.out_proj(attend(q, k, heads_of(self.v_proj(x), self.kv_heads), causal, kept))


class TextMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        D, width = c["lm_hidden_dim"], c["lm_inter_dim"]
        self.gate_proj, self.up_proj = (nn.Linear(D, width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(width, D, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TextBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2, self.attn, self.mlp = RMSNorm(c), RMSNorm(c), TextAttention(c), TextMlp(c)

    def forward(self, x, *given):
        x = x + self.attn(self.norm1(x), *given)
        return x + self.mlp(self.norm2(x))


class Frequencies(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.length = c["lm_hidden_dim"] // c["lm_n_heads"], c["lm_max_position_embeddings"]
        self.register_buffer("inv_freq", 1.0 / (c["lm_re_base"] ** (torch.arange(0, d, 2).float() / d)))

    def forward(self, T):
        """Angles of T positions, which longer texts than the trained ones share among them."""
        return torch.arange(T)[:, None].float() * self.inv_freq / max(T / self.length, 1)


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.token_embedding = nn.Embedding(c["lm_vocab_size"], c["lm_hidden_dim"])
        self.rotary_embd = Frequencies(c)
        self.blocks = nn.ModuleList(TextBlock(c) for _ in range(c["lm_n_blocks"]))
        self.norm = RMSNorm(c)
        self.head = nn.Linear(c["lm_hidden_dim"], c["lm_vocab_size"], bias=False)
        if c["lm_tie_weights"]:
            self.head.weight = self.token_embedding.weight


class NanoVLM(nn.Module):
    """The model; the call returns all that is compared, `hidden` before each block and after the norm."""

    def __init__(self, c):
        super().__init__()
        self.c, self.vision_encoder, self.MP, self.decoder = c, VisionEncoder(c), Projector(c), Decoder(c)

    def forward(self, images, tokens, mask, image_token=None):
        """Images [I, C, H, W], whose tokens stand at the image token's places in order, or before all texts."""
        image_tokens = self.MP(self.vision_encoder(images, []))
        x = self.decoder.token_embedding(tokens)
        if image_token is None:
            x = torch.cat([image_tokens, x], dim=1)
            mask = F.pad(mask, (image_tokens.shape[1], 0), value=True)
        else:
            x = x.masked_scatter((tokens == image_token)[..., None], image_tokens.reshape(-1, x.shape[-1]))
        T = x.shape[1]
        causal = torch.ones(T, T, dtype=torch.bool).tril() & (mask[:, None, None] | torch.eye(T, dtype=torch.bool))
        angles = self.decoder.rotary_embd(T)
        kept, hidden = [], []
        for block in self.decoder.blocks:
            hidden.append(x)
            x = block(x, angles, causal, kept)
        x = self.decoder.norm(x)
        return {"hidden": hidden, "tokens": x, "logits": self.decoder.head(x), "attention": kept}

    def save(self, folder: Path) -> None:
        """Writes config.json and model.safetensors, of a tied head the head's name alone, as nanoVLM does."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous().clone() for name, tensor in self.state_dict().items()}
        if self.c["lm_tie_weights"]:
            del tensors["decoder.token_embedding.weight"]
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.c, indent=4))
