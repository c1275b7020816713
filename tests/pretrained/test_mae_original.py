"""The MAE authors' .pth, made from a `transformers` model by renaming its tensors, answers like that model."""

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from vitvlm import pretrained

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 28,
    "layer_norm_eps": 1e-6,
    "norm_pix_loss": True,
}

BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' names; query, key and value are one tensor there."""
    names = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.decoder_pos_embed",
    }
    modules = {
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "decoder_embed": "decoder.decoder_embed",
        "decoder_norm": "decoder.decoder_norm",
        "decoder_pred": "decoder.decoder_pred",
    }
    blocks = {f"blocks.{i}": f"vit.encoder.layer.{i}" for i in range(2)}
    blocks["decoder_blocks.0"] = next(n for n in state if "layernorm_before" in n and "decoder" in n).rsplit(".", 2)[0]
    found = {}
    for ours, theirs in blocks.items():
        modules |= {f"{ours}.{new}": f"{theirs}.{old}" for old, new in BLOCK.items()}
        for kind in ("weight", "bias"):
            parts = [state[f"{theirs}.attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            found[f"{ours}.attn.qkv.{kind}"] = torch.cat(parts)
    names |= {f"{new}.{kind}": f"{old}.{kind}" for new, old in modules.items() for kind in ("weight", "bias")}
    return found | {new: state[old] for new, old in names.items()}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("mae") / "mae.pth"
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**SIZES)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    rng = np.random.default_rng(0)
    images, noise = rng.normal(size=(2, 16, 16, 3)).astype(np.float32), rng.uniform(size=(2, 16)).astype(np.float32)
    with torch.no_grad():
        output = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), noise=torch.from_numpy(noise))
    theirs.save_pretrained(path.parent)
    state = {name: torch.from_numpy(array) for name, array in load_file(path.parent / "model.safetensors").items()}
    torch.save({"model": renamed(state), "epoch": 799}, path)
    return path, images, noise, output


def test_the_whole_autoencoder(case):
    path, images, noise, expected = case
    loaded = pretrained.load(path, heads=4, decoder_heads=2, norm_pix=True)
    assert loaded.model.vit.positions == "learned" and loaded.source["format"] == "MAE"
    ours = jax.jit(loaded.model.apply)(loaded.variables, images, noise)
    np.testing.assert_allclose(ours.reconstruction, expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.loss, expected.loss.numpy(), atol=1e-4)


def test_the_encoder_alone(case, tmp_path):
    path, images, _, _ = case
    whole = torch.load(path)["model"]
    encoder = {name: tensor for name, tensor in whole.items() if not name.startswith(("decoder", "mask_token"))}
    torch.save({"model": encoder}, tmp_path / "encoder.pth")
    loaded = pretrained.load(tmp_path / "encoder.pth", heads=4)
    autoencoder = pretrained.load(path, heads=4, decoder_heads=2, norm_pix=True)
    expected = autoencoder.model.apply(autoencoder.variables, images, method=autoencoder.model.encode)
    np.testing.assert_allclose(loaded.model.apply(loaded.variables, images).tokens, expected.tokens, atol=1e-5)


def test_what_the_file_does_not_say_is_asked_for(case, tmp_path):
    path = case[0]
    for given, message in [
        ({"heads": 4}, "give norm_pix=True or False"),
        ({"norm_pix": True}, "no published ViT has width 24, and the file does not say its heads: give heads="),
        ({"heads": 4, "norm_pix": True, "image_size": (8, 16)}, r"pos_embed \(1, 17, 24\), not \(1, 9, 24\)"),
    ]:
        with pytest.raises(pretrained.WeightsError, match=message):
            pretrained.load(path, **given)
    torch.save({"w": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(pretrained.WeightsError, match=r"of no layout that is read without a config .*; it holds w$"):
        pretrained.load(tmp_path / "other.pth")
