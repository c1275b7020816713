"""A language model beside `transformers`, which reads the same GGUF file with PyTorch: likelihoods and greedy texts."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table

from vitvlm import generation
from vitvlm.jobs.evaluation.blind import Pair
from vitvlm.pretrained import Pretrained

PARAGRAPHS = (
    "The lighthouse stood at the end of a long, narrow spit of land, and every evening the keeper climbed its hundred "
    "and twelve steps to light the lamp. In winter the waves broke over the rocks and threw spray as high as the "
    "gallery, so that the windows had to be wiped clean of salt before the light could be seen from the sea.",
    "Photosynthesis is the process by which green plants, algae and some bacteria turn the energy of light into "
    "chemical energy. Water is split into oxygen, protons and electrons in the thylakoids; the carbon dioxide of the "
    "air is then fixed by the enzyme RuBisCO in the Calvin cycle, which gives sugars with three carbon atoms.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        yield a\n        a, b = b, a + b\n\n\n"
    "print(list(fibonacci(10)))  # [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]\n",
)
PROMPT = "The history of the city begins with a small settlement on the bank of the river, where"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A model of `transformers` in float32."""

    model: Any

    @classmethod
    def of(cls, path: Path) -> "Peer":
        """Loads a GGUF file. Raises ImportError without PyTorch, transformers and gguf.

        Its class reads all types that it has dequantization of its own for; for the others (Q5_0) there is its older
        reader, which leaves that to the package `gguf`.
        """
        try:
            import torch
            import transformers
            from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
        except ImportError as error:
            raise ImportError(f"the peer is transformers with PyTorch: pip install 'vitvlm[test]' ({error})") from None
        how = {"gguf_file": path.name, "dtype": torch.float32}
        try:
            return cls(transformers.AutoModelForCausalLM.from_pretrained(path.parent, **how).eval())
        except ValueError as error:
            if "not supported" not in str(error):
                raise
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        model.tie_weights()
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise ValueError(f"{path}: transformers lacks {missing} and has {unexpected} besides")
        return cls(model)

    def log_probs(self, ids: Sequence[int]) -> Float[np.ndarray, " L-1"]:
        """Log-probability of each token but the first, given those before it."""
        import torch

        with torch.no_grad():
            tokens = torch.tensor([list(ids)])
            logits = self.model(tokens).logits[0, :-1].double()
            return torch.log_softmax(logits, dim=-1).gather(1, tokens[0, 1:, None])[:, 0].numpy()

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest tokens after a prompt, one by one, whether or not one of them ends a text."""
        import torch

        with torch.no_grad():
            tokens = torch.tensor([list(ids)])
            found = self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                eos_token_id=-1,
                pad_token_id=0,
            )
        return found[0, len(ids) :].tolist()


def greedy(loaded: Pretrained, ids: Sequence[int], count: int) -> list[int]:
    """The same of our own loop, without stop tokens."""
    options = generation.Options(max_new_tokens=count, stop_ids=())
    ((written,),) = generation.Writer(loaded).write_ids([list(ids)], options)
    return list(written.ids)


def log_probs(loaded: Pretrained, text: str) -> tuple[list[int], Float[np.ndarray, " L-1"]]:
    """Ids of a text, BOS included, and the log-probability of each but the first."""
    ids = loaded.tokenizer.whole([text], add_eos=False)[0]
    (scored,) = generation.score(loaded, [text])
    return ids, np.asarray(scored.log_probs)


def compare(loaded: Pretrained, peer: Peer, count: int, pairs: Sequence[Pair] = (), before: str = "") -> dict[str, Any]:
    """Compares the paragraphs' likelihoods, `count` greedy tokens, and which caption of each pair is the likelier.

    The peer's part of the pairs is a plain loop over captions, one at a time.
    """
    result: dict[str, Any] = {"paragraphs": [], "tokens": count}
    for text in PARAGRAPHS:
        ids, ours = log_probs(loaded, text)
        theirs = peer.log_probs(ids)
        result["paragraphs"].append(
            {
                "tokens": len(theirs),
                "ours": ours.mean(),
                "theirs": theirs.mean(),
                "largest": np.abs(ours - theirs).max(),
            }
        )
    ids = loaded.tokenizer.whole([PROMPT], add_eos=False)[0]
    ours, theirs = greedy(loaded, ids, count), peer.greedy(ids, count)
    result["same"] = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    result["text"] = loaded.tokenizer.model.decode([ours])[0]
    if pairs:
        result["pairs"] = _compare_pairs(loaded, peer, pairs, before)
    return result


def _compare_pairs(loaded: Pretrained, peer: Peer, pairs: Sequence[Pair], before: str) -> dict[str, Any]:
    texts = [text for pair in pairs for text in pair]
    scored = generation.score(loaded, texts, [before] * len(texts) if before else None)
    sums, values = [], []
    for text in texts:
        ids = loaded.tokenizer.whole([before + text], add_eos=False)[0]
        theirs = peer.log_probs(ids)
        sums.append((theirs.sum(), theirs.mean()))
    values = [(each.total, each.mean) for each in scored]
    ours, theirs = (np.array(each).reshape(-1, 2, 2) for each in (values, sums))  # [pairs, captions, rules]
    right, their_right = (each[:, 0] > each[:, 1] for each in (ours, theirs))
    return {
        "n": len(pairs),
        "ours": right.mean(axis=0).tolist(),
        "theirs": their_right.mean(axis=0).tolist(),
        "differ": int((right != their_right).sum()),
        "largest": float(np.abs(ours - theirs)[..., 1].max()),
    }


def table(result: dict[str, Any], title: str) -> Table:
    """The comparison, line by line."""
    shown = Table("what", "ours", "transformers", "largest difference of a token", title=title)
    for i, found in enumerate(result["paragraphs"]):
        shown.add_row(
            f"log-likelihood per token, paragraph {i + 1} ({found['tokens']} tokens)",
            f"{found['ours']:.5f}",
            f"{found['theirs']:.5f}",
            f"{found['largest']:.1e}",
        )
    shown.add_row("greedy tokens alike from the first", f"{result['same']}", f"{result['tokens']}", "")
    if pairs := result.get("pairs"):
        for rule, name in enumerate(("sum", "mean")):
            shown.add_row(
                f"{pairs['n']} caption pairs right, by the {name}",
                f"{pairs['ours'][rule]:.4f}",
                f"{pairs['theirs'][rule]:.4f}",
                f"{pairs['largest']:.1e} of the mean, {pairs['differ']} choices differ",
            )
    return shown


def record(loaded: Pretrained, peer: Peer, count: int, path: Path) -> None:
    """Writes what the peer makes of the paragraphs and the prompt, for a test that does without it."""
    prompt = loaded.tokenizer.whole([PROMPT], add_eos=False)[0]
    texts = [loaded.tokenizer.whole([text], add_eos=False)[0] for text in PARAGRAPHS]
    found = {"log_probs": [np.round(peer.log_probs(ids), 5).tolist() for ids in texts]}
    found["greedy"] = peer.greedy(prompt, count)
    path.write_text(json.dumps(found) + "\n")
