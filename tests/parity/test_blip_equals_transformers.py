"""Our BLIP against the three of `transformers`, small and random, all sides of other sizes; float32.

They are BlipForConditionalGeneration, BlipForQuestionAnswering and BlipForImageTextRetrieval.
"""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, pixels, randomise, stacked
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from tests.nn.references import softmaxes
from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.objectives import next_token

VISION = {
    "hidden_size": 18,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
    "layer_norm_eps": 1e-3,
    "hidden_act": "quick_gelu",
}
TEXT = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 11,
    "layer_norm_eps": 1e-2,
    "hidden_act": "gelu_new",
    "bos_token_id": 29,
    "sep_token_id": 5,
    "pad_token_id": 0,
}
B, L, A = 3, 7, 5
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(B, 12, 12, 3)).astype(np.float32)
TEXTS, ANSWERS = RNG.integers(6, 29, size=(B, L)), RNG.integers(6, 29, size=(B, A))
PADDED = np.array([[1] * 4 + [0] * 3, [1] * 6 + [0], [1] * L])
ANSWER_MASK = np.array([[1] * 3 + [0] * 2, [1] * 2 + [0] * 3, [1] * A])
# Theirs computes masks of the cross-attention and never uses them: an answer sees the padding of a question.
MASKS = {"captioner": PADDED, "vqa": np.ones_like(PADDED), "retrieval": PADDED}
WIDE = {"hidden_size": 18, "num_attention_heads": 3}  # as the image: the answer's side needs that
CASES = {
    "captioner": (BlipForConditionalGeneration, {}),
    "vqa": (BlipForQuestionAnswering, WIDE),
    "retrieval": (BlipForImageTextRetrieval, {}),
}


def long(values):
    return torch.from_numpy(np.asarray(values)).long()


def reference(case):
    kind, fields = CASES[case]
    config = BlipConfig(vision_config=VISION, text_config=TEXT | fields, image_text_hidden_size=8)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = kind(config)
    for name, parameter in theirs.named_parameters():  # theirs begin with deviations of 1 and of 1e-10
        if "position_embedding" in name or "class_embedding" in name:
            parameter.data *= 0.1
        elif parameter.ndim > 1:
            parameter.data = 0.1 * torch.randn(parameter.shape)
    randomise(theirs)
    return theirs


def run_theirs(case, theirs):
    """Returns the reference's output and loss, or for retrieval both scores and the sum of all."""
    mask = MASKS[case]
    seen = {"pixel_values": pixels(IMAGES), "output_hidden_states": True, "output_attentions": True}
    if case == "captioner":
        out = theirs(input_ids=long(TEXTS), attention_mask=long(mask), labels=long(np.where(mask, TEXTS, -100)), **seen)
        return out, out.loss
    asked = {"input_ids": long(TEXTS), "attention_mask": long(mask)}
    if case == "vqa":
        answer = {"decoder_input_ids": long(ANSWERS), "decoder_attention_mask": long(ANSWER_MASK)}
        out = theirs(**asked, **answer, labels=long(np.where(ANSWER_MASK, ANSWERS, -100)), **seen)
        return out, out.loss
    out = theirs(**asked, **seen)
    cosine = theirs(**asked, pixel_values=pixels(IMAGES), use_itm_head=False)
    direction = torch.arange(1.0, 1 + B)
    loss = (out.itm_score[:, 1] * direction).sum() + (cosine.itm_score * direction).sum()
    return (out, cosine), loss


@functools.cache
def expectation(case):
    """All that the reference makes of the inputs, its weights in a folder, and the loss's gradients."""
    folder = Path(tempfile.mkdtemp())
    theirs = reference(case)
    loaded = load(theirs, folder / "theirs")
    check_written_back(theirs, loaded, folder / "ours")
    kept = {}

    def keep(name):
        return lambda module, given, out: kept.setdefault(name, []).append(out)

    for side in ("text_encoder", "text_decoder"):
        if hasattr(theirs, side):
            base = getattr(theirs, side)
            base = base.bert if side == "text_decoder" else base
            base.embeddings.register_forward_hook(keep(side))
            for layer in base.encoder.layer:
                layer.register_forward_hook(keep(side))
    if hasattr(theirs, "text_decoder"):
        theirs.text_decoder.cls.register_forward_hook(keep("logits"))
    with softmaxes() as weights:
        out, loss = run_theirs(case, theirs)
    loss.backward()
    expected = {"loss": loss.item(), "kept": {name: [array(each) for each in found] for name, found in kept.items()}}
    first = out[0] if case == "retrieval" else out
    expected["image_hidden"] = stacked(first.hidden_states)
    expected["image_attention"] = stacked(first.attentions)
    expected["image_tokens"] = array(first.last_hidden_state)
    if case == "retrieval":
        expected |= {"match_logits": array(out[0].itm_score), "logits_per_image": array(out[1].itm_score)}
    expected["weights"] = [array(each) for each in weights]
    expected["d_weights"] = [array(each.grad) for each in weights]
    if case == "retrieval":  # theirs looks at the images twice, once for either score
        layers = VISION["num_hidden_layers"]
        again = len(weights) - layers - TEXT["num_hidden_layers"]
        for i in range(layers):
            expected["d_weights"][i] = expected["d_weights"][i] + expected["d_weights"][again + i]
    return folder / "theirs", expected, paths.flatten(gradients(theirs, loaded, folder / "gradients"))


def by_side(case, weights):
    """Attention weights in the order in which they are computed, by our names; layers along a leading axis."""
    image, text = VISION["num_hidden_layers"], TEXT["num_hidden_layers"]
    found = {("image", "attention"): weights[:image]}
    rest = weights[image:]
    if case == "vqa":
        found |= {("text", "attention"): rest[: 2 * text : 2], ("text", "cross"): rest[1 : 2 * text : 2]}
        rest = rest[2 * text :]
    side = {"captioner": "text", "vqa": "decoder", "retrieval": "matching"}[case]
    found |= {(side, "attention"): rest[: 2 * text : 2], (side, "cross"): rest[1 : 2 * text : 2]}
    if case == "retrieval":
        found[("text", "attention")] = rest[2 * text + image :]
    return {key: np.stack(each) for key, each in found.items()}


def nested(weights):
    tree = {}
    for (side, kind), array_ in weights.items():
        tree.setdefault(side, {})[kind] = array_
    return tree


def call(case, loaded, **given):
    """Returns the call of our model with the inputs."""
    kinds = {"captioner": {}, "retrieval": {}, "vqa": {"decoder_tokens": ANSWERS, "decoder_mask": ANSWER_MASK}}
    mask = {"mask": MASKS[case]}
    return functools.partial(loaded.model.apply, images=IMAGES, text_tokens=TEXTS, **mask, **kinds[case], **given)


def loss_of(case, out):
    if case == "retrieval":
        direction = np.arange(1.0, 1 + B)
        return jnp.sum(out.match_logits[:, 1] * direction) + jnp.sum(out.logits_per_image * direction)
    labels, mask = (TEXTS, MASKS[case]) if case == "captioner" else (ANSWERS, ANSWER_MASK)
    each = next_token.cross_entropy(out.tokens[:, :-1], out.head_kernel, jnp.asarray(labels[:, 1:]), out.head_bias)
    return jnp.mean(each, where=mask[:, 1:] > 0)


@pytest.mark.parametrize("how", [{"scan": False}, {"scan": True, "remat": "full"}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_the_loss_and_all_gradients(case, how):
    folder, expected, d_params = expectation(case)
    loaded = pretrained.load(folder, **how)
    zeros = nested({key: jnp.zeros(each.shape) for key, each in by_side(case, expected["weights"]).items()})
    asked = {} if case == "retrieval" else {"logits": "none"}

    @jax.jit
    def run(params, perturb):
        def loss(params, perturb):
            return loss_of(case, call(case, loaded, perturb=perturb, **asked)({"params": params}))

        out = call(case, loaded, capture=("hidden", "attention"))({"params": params})
        return out, *jax.value_and_grad(loss, (0, 1))(params, perturb)

    out, value, (found_params, found_weights) = run(loaded.variables["params"], zeros)
    close(value, expected["loss"], "loss")
    close(out.image.hidden, expected["image_hidden"][: len(out.image.hidden)], "image hidden")
    close(out.image.attention, expected["image_attention"], "image attention")
    tokens = jnp.concatenate([out.image.prefix, out.image.tokens], axis=1)
    close(tokens, expected["image_tokens"], "image tokens")
    check_texts(case, out, expected)
    if case == "retrieval":
        close(out.match_logits, expected["match_logits"], "match")
        close(out.logits_per_image, expected["logits_per_image"], "cosines")
    close_trees(paths.flatten(unstack_blocks(found_params)), d_params)
    weights = by_side(case, expected["weights"])
    for (side, kind), wanted in by_side(case, expected["d_weights"]).items():
        seen = weights[side, kind] > 0  # what stands at padding has other positions there, and nobody sees it
        close(np.asarray(found_weights[side][kind])[seen], wanted[seen], f"dL/dA of {side} {kind}")


def check_texts(case, out, expected):
    """Hidden states and attention of each side of text at its real tokens; logits."""
    kept, depth = expected["kept"], TEXT["num_hidden_layers"]
    weights = by_side(case, expected["weights"])
    real, answered = MASKS[case] > 0, ANSWER_MASK > 0
    sides = {
        "captioner": {"text": (out, kept.get("text_decoder"), real)},
        "vqa": {"decoder": (out, kept.get("text_decoder"), answered)},
        "retrieval": {"matching": (getattr(out, "matching", None), kept.get("text_encoder", [])[: depth + 1], real)},
    }[case]
    for side, (found, hidden, rows) in sides.items():
        close(np.asarray(found.hidden)[:, rows], np.stack(hidden)[:, rows], f"{side} hidden")
        for kind, ours in (("attention", found.attention), ("cross", found.cross_attention)):
            close(
                np.moveaxis(np.asarray(ours), 3, 2)[:, rows],
                np.moveaxis(weights[side, kind], 3, 2)[:, rows],
                f"{side} {kind}",
            )
    if case == "vqa":
        close(np.asarray(out.encoder_hidden)[:, real], np.stack(kept["text_encoder"])[:, real], "question hidden")
        for kind, ours in (("attention", out.encoder_attention), ("cross", out.encoder_cross_attention)):
            wanted = weights["text", kind]
            close(np.moveaxis(np.asarray(ours), 3, 2)[:, real], np.moveaxis(wanted, 3, 2)[:, real], f"question {kind}")
    if case == "retrieval":
        alone = np.stack(kept["text_encoder"][depth + 1 :])
        close(np.asarray(out.text.hidden)[:, real], alone[:, real], "text hidden")
        wanted = np.moveaxis(weights["text", "attention"], 3, 2)[:, real]
        close(np.moveaxis(np.asarray(out.text.attention), 3, 2)[:, real], wanted, "text attention")
    else:
        rows = real if case == "captioner" else answered
        close(np.asarray(out.logits)[rows], kept["logits"][0][rows], "logits")


def test_padded_questions_are_theirs_without_padding():
    """A batch of questions of other lengths, padded on either side, against theirs one by one."""
    folder, *_ = expectation("vqa")
    theirs = BlipForQuestionAnswering.from_pretrained(folder).eval()
    loaded = pretrained.load(folder)
    lengths, wanted = PADDED.sum(axis=1), []
    for i, length in enumerate(lengths):
        with softmaxes():
            out = theirs.text_decoder(
                long(ANSWERS[i : i + 1]),
                encoder_hidden_states=theirs.text_encoder(
                    long(TEXTS[i : i + 1, :length]),
                    encoder_hidden_states=theirs.vision_model(pixels(IMAGES[i : i + 1])).last_hidden_state,
                ).last_hidden_state,
            )
        wanted.append(array(out.logits)[0])
    run = jax.jit(functools.partial(loaded.model.apply, loaded.variables, IMAGES))
    close(run(TEXTS, PADDED, decoder_tokens=ANSWERS).logits, np.stack(wanted), "padded on the right")
    left = np.stack([np.roll(row, L - length) for row, length in zip(TEXTS, lengths)])
    close(run(left, PADDED[:, ::-1], decoder_tokens=ANSWERS).logits, np.stack(wanted), "padded on the left")


@pytest.mark.parametrize(("case", "scan"), [("captioner", False), ("vqa", True)])
def test_steps_with_a_cache_equal_the_whole_and_an_image_that_is_not_there_changes_nothing(case, scan):
    loaded = pretrained.load(expectation(case)[0], scan=scan)
    model, images = loaded.model, IMAGES
    there = np.array([[1], [0], [1]])
    tokens = {"captioner": "text_tokens", "vqa": "decoder_tokens"}[case]
    masks = {"captioner": "mask", "vqa": "decoder_mask"}[case]
    asked = {"images": images, "image_mask": there}
    asked |= {} if case == "captioner" else {"text_tokens": TEXTS, "mask": PADDED}
    mask = np.pad(np.array([[1] * A, [0] * 2 + [1] * 3, [0] + [1] * 4]), [(0, 0), (0, 1)])
    run = jax.jit(lambda **given: model.apply(loaded.variables, **given))
    whole = run(**asked, **{tokens: ANSWERS, masks: mask[:, :A]})
    out = run(**asked, **{tokens: ANSWERS[:, :2], masks: mask}, cache=model.empty_cache(B, A + 1))
    found = [out.logits]
    for i in range(2, A):
        out = run(**{tokens: ANSWERS[:, i : i + 1], masks: mask}, cache=out.cache)
        found.append(out.logits)
    real = mask[:, :A] > 0
    close(np.concatenate(found, axis=1)[real], np.asarray(whole.logits)[real], "logits")
    other = run(**asked | {"images": images[::-1].copy()}, **{tokens: ANSWERS, masks: mask[:, :A]}).logits
    blind, seen = np.abs(np.asarray(other - whole.logits))[1][real[1]], np.abs(np.asarray(other - whole.logits))[0]
    assert not blind.any() and seen.max() > 1e-3


@pytest.mark.parametrize(("case", "name"), [("captioner", "captioner"), ("vqa", "vqa"), ("retrieval", "retrieval")])
def test_counts_at_full_size(case, name):
    """Parameters of the base models: those of `transformers`, with BERT's heads, which change no shape."""
    with torch.device("meta"):
        theirs = CASES[case][0](BlipConfig())
    wanted = sum(parameter.numel() for parameter in theirs.parameters())
    own = {"scale_init": None} if name == "retrieval" else {}
    model = models.build(f"blip_{name}", variant="base", **own)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 384, 384, 3)), jnp.zeros((1, 3), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == wanted
    assert name != "captioner" or wanted == 223_971_644


def test_what_we_add_to_their_format_is_read_back(tmp_path):
    """A learned temperature and [ENC], which matching needs, are kept; `transformers` reads the rest."""
    sizes = {"width": 18, "depth": 1, "heads": 3, "mlp_width": 20}
    image = {"name": "vit", "patch_size": 4, "image_size": 12, **sizes}
    text = {"vocab_size": 31, "length": 11, **sizes}
    model = models.build("blip_retrieval", image=image, text=text, embed_dim=8, encode_id=30, scan=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, TEXTS)
    params = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), shapes)
    pretrained.save(pretrained.Pretrained(model, params, None, None, {}), tmp_path)
    loaded = pretrained.load(tmp_path)
    close_trees(paths.flatten(loaded.variables), {k: np.asarray(v) for k, v in paths.flatten(params).items()})
    theirs = BlipForImageTextRetrieval.from_pretrained(tmp_path)
    asked = TEXTS.copy()
    asked[:, 0] = 30
    expected = theirs(input_ids=long(asked), attention_mask=long(PADDED), pixel_values=pixels(IMAGES)).itm_score
    found = jax.jit(loaded.model.apply)(loaded.variables, IMAGES, TEXTS, PADDED)
    close(found.match_logits, array(expected), "match")
    assert loaded.model.encode_id == 30 and np.isclose(found.scale, np.exp(params["params"]["log_scale"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_config": TEXT}, "hidden_size 18 of images and 12 of texts"),
        ({"text_config": TEXT | WIDE | {"is_decoder": False}}, "text_config.is_decoder False; only True is understood"),
    ],
)
def test_configs_that_cannot_be_meant(tmp_path, fields, message):
    BlipForQuestionAnswering(BlipConfig(vision_config=VISION, **fields)).save_pretrained(tmp_path)
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(tmp_path)


def test_vqa_of_two_widths_is_refused_there(tmp_path):
    sizes = {"depth": 1, "heads": 2, "mlp_width": 20}
    image = {"name": "vit", "patch_size": 4, "image_size": 12, "width": 16, **sizes}
    model = models.build(
        "blip_vqa", image=image, text={"vocab_size": 31, "length": 11, "width": 12, **sizes}, scan=False
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, TEXTS)
    with pytest.raises(ConfigError, match=r"BLIP's VQA has no image\.width = 16 with text\.width = 12"):
        pretrained.save(pretrained.Pretrained(model, shapes, None, None, {}), tmp_path)
