"""Tokenizers of Hugging Face folders equal `transformers`, and take their special tokens from the files."""

import json

import numpy as np
import pytest
import tokenizers as fast
from transformers import PreTrainedTokenizerFast

from vitvlm.core.config import ConfigError
from vitvlm.data import tokenizers


@pytest.fixture(scope="module")
def folders(names, tmp_path_factory):
    """Tokenizers as `transformers` saves them: BERT's kind, Llama's kind, GPT-2's kind, Unigram as T5."""
    root = tmp_path_factory.mktemp("hf")

    wordpiece = fast.Tokenizer(fast.models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = fast.normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = fast.pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = fast.decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    wordpiece.train_from_iterator(names, fast.trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials))
    wordpiece.post_processor = fast.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    bert = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}

    bpe = fast.Tokenizer(fast.models.BPE())
    bpe.pre_tokenizer = fast.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = fast.decoders.ByteLevel()
    alphabet = fast.pre_tokenizers.ByteLevel.alphabet()
    trainer = fast.trainers.BpeTrainer(vocab_size=400, special_tokens=["<e>", "<s>"], initial_alphabet=alphabet)
    bpe.train_from_iterator(names, trainer)
    llama = {"bos_token": "<s>", "eos_token": "<e>", "pad_token": "<e>", "add_bos_token": True}
    llama |= {"padding_side": "left", "truncation_side": "left"}
    gpt2 = {"bos_token": "<e>", "eos_token": "<e>", "pad_token": "<e>"}

    unigram = fast.Tokenizer(fast.models.Unigram())
    unigram.pre_tokenizer = fast.pre_tokenizers.Metaspace()
    unigram.decoder = fast.decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = fast.trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>")
    unigram.train_from_iterator(names, trainer)
    unigram.post_processor = fast.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    t5 = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

    for name, model, fields in [
        ("bert", wordpiece, bert),
        ("llama", bpe, llama),
        ("gpt2", bpe, gpt2),
        ("t5", unigram, t5),
    ]:
        json_text = model.to_str()  # transformers changes the tokenizer that it is given
        theirs = PreTrainedTokenizerFast(
            tokenizer_object=fast.Tokenizer.from_str(json_text), model_max_length=12, **fields
        )
        theirs.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("length", [None, 5, 40])
def test_hugging_face_folders_equal_transformers(folders, names, name, length):
    theirs = PreTrainedTokenizerFast.from_pretrained(folders / name)
    ours = tokenizers.open(f"hf:{folders / name}", length)
    texts = ["", "cat", "Étude naïve of ALL the cats", "ネコ 🐱 x", *names[:50], " ".join(names[:40])]
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=length or 12, return_tensors="np")
    tokens = ours.encode(texts)
    np.testing.assert_array_equal(tokens.ids, wanted["input_ids"])
    np.testing.assert_array_equal(tokens.mask, wanted["attention_mask"])
    assert ours.vocab_size == len(theirs)
    uncut = tokenizers.open(f"hf:{folders / name}", 100)
    wanted = [theirs.decode(theirs(each)["input_ids"], skip_special_tokens=True) for each in names]
    assert uncut.decode(uncut.encode(names).ids) == wanted


def test_special_ids_come_from_the_files(folders, tmp_path):
    bert, llama = (tokenizers.open(f"hf:{folders / name}") for name in ("bert", "llama"))
    assert (bert.pad_id, bert.bos_id, bert.eos_id, bert.add_bos, bert.add_eos, bert.length) == (0, 2, 3, True, True, 12)
    assert (llama.pad_id, llama.bos_id, llama.eos_id, llama.add_bos, llama.add_eos) == (0, 1, 0, True, False)
    assert (llama.padding, llama.truncation) == ("left", "left")

    (tmp_path / "tokenizer.json").write_text((folders / "gpt2" / "tokenizer.json").read_text())
    with pytest.raises(ConfigError, match="its files give no length; give length="):
        tokenizers.open(f"hf:{tmp_path}")
    with pytest.raises(ConfigError, match="its files give no pad_id; give pad_id="):
        tokenizers.open(f"hf:{tmp_path}", 8)
    token = {"content": "<e>", "lstrip": False}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": token, "eos_token": "<s>"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token, "model_max_length": int(1e30)}))
    opened = tokenizers.open(f"hf:{tmp_path / 'tokenizer.json'}", 8)
    assert (opened.pad_id, opened.eos_id, opened.bos_id, opened.add_eos) == (0, 0, None, False)


def test_a_template_of_two_tokens_is_refused(folders, tmp_path):
    model = fast.Tokenizer.from_file(str(folders / "gpt2" / "tokenizer.json"))
    model.post_processor = fast.processors.TemplateProcessing("<s> <e> $A", special_tokens=[("<e>", 0), ("<s>", 1)])
    model.save(str(tmp_path / "two.json"))
    with pytest.raises(ConfigError, match="adds <s>, <e> to a text; only one token at either end"):
        tokenizers.open(f"hf:{tmp_path / 'two.json'}", 8, pad_id=0)


def test_tokens_that_are_added_come_behind_the_vocabulary():
    """The first two that it lacks have the next ids, whatever the text around them; one that it has keeps its own."""
    plain = tokenizers.open("emoji")
    more = tokenizers.open("emoji", 40, added="<image> <eos> <row_1_col_1>")
    assert more.vocab_size == plain.vocab_size + 2 and more.token_id("<eos>") == plain.eos_id
    image, row = plain.vocab_size, plain.vocab_size + 1
    ids = more.pieces("cat<image><image> <row_1_col_1>face").ids
    cat, face = plain.pieces("cat").ids, plain.pieces("face").ids
    assert [i for i in ids if i >= plain.vocab_size] == [image, image, row] and ids[: len(cat)] == cat
    assert ids[-len(face) :] == face and plain.pieces("<image>").ids != [image]
    with pytest.raises(ConfigError, match=r"tokenizer\.added: '<image>': this kind takes no more tokens"):
        tokenizers.open("clip", added="<image>")
