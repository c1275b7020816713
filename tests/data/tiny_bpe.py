"""A byte-level BPE of its own in the format of Hugging Face, with ChatML's template."""

import json

from vitvlm.data import tokenizers

CORPUS = [
    "the cat sat on the mat",
    "keywords of cat face: animal, pet, feline",
    "user asks\nassistant answers",
    "a b c",
] * 3
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = ("<|im_start|>", "<|im_end|>")


def write(folder, tokens=TURNS, template=CHATML):
    """Writes tokenizer.json with these special tokens besides <pad>, <bos> and <eos>, and tokenizer_config.json."""
    tokenizers.train(CORPUS, 300, folder / "tokenizer.json", min_frequency=1)
    described = json.loads((folder / "tokenizer.json").read_text())
    for token in tokens:
        known = {"id": len(described["model"]["vocab"]), "content": token, "special": True}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        described["model"]["vocab"][token] = known["id"]
        described["added_tokens"].append(known | flags)
    described["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(described))
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **special}))
    return folder


def spelt(tokenizer, ids):
    """The text of tokens, special ones spelt out."""
    return "".join(tokenizer.model.fast.decode([i], skip_special_tokens=False) for i in ids)
