"""Records what pycocoevalcap makes of 1,000 real captions, for tests that need neither Java nor its 100 MB.

    python -m tests.parity.recorded.record_captions POPE_FOLDER

POPE_FOLDER holds captions of 2,000 COCO images by InstructBLIP and LLaVA (github.com/RUCAIBox/POPE, MIT licence).
InstructBLIP's of the first 1,000 are judged, the first sentences of LLaVA's, two to four of them, are their references.
captions.json.xz holds both as they are, their tokens by Stanford's PTBTokenizer, and the scores of pycocoevalcap;
our METEOR, which is the same program, is compared with its on the way.
"""

import json
import lzma
import sys
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from tests.parity.recorded.concatenated import concatenated
from vitvlm.evaluation.measures import meteor

COUNT = 1000
HERE = Path(__file__).parent
EXTRA = (  # odd ones: empty, of one word, a repeated one, much longer than its references
    ("", ["a dog", "a cat."]),
    ("dog", ["Dog!"]),
    ("a a a a a a", ["a man and a woman", "a boy"]),
    (
        "It's a man's hat (red) at 10:30 a.m. -- isn't it? \"Yes\", he can't say no... 1,000 times",
        ["A hat; a red hat."],
    ),
)


def main(folder: Path) -> None:
    short = [json.loads(line) for line in (folder / "captions_Instruction1_instructblip.json").open()]
    long = {
        row["image_id"]: row["text"] for row in concatenated((folder / "captions_Instruction1_llava.json").read_text())
    }
    pairs = [
        (
            row["text"],
            [f"{each.strip()}." for each in long[row["image_id"]].replace("\n", " ").split(". ")[: 2 + i % 3]],
        )
        for i, row in enumerate(short[: COUNT - len(EXTRA)])
    ]
    pairs += EXTRA
    candidates = {i: [{"caption": text}] for i, (text, _) in enumerate(pairs)}
    references = {i: [{"caption": each} for each in known] for i, (_, known) in enumerate(pairs)}
    candidates, references = PTBTokenizer().tokenize(candidates), PTBTokenizer().tokenize(references)
    record = {
        "captions": [text for text, _ in pairs],
        "references": [known for _, known in pairs],
        "caption_tokens": [candidates[i][0] for i in range(len(pairs))],
        "reference_tokens": [references[i] for i in range(len(pairs))],
    }
    for name, scorer in {"bleu": Bleu(4), "rouge": Rouge(), "cider": Cider(), "meteor": Meteor()}.items():
        corpus, each = scorer.compute_score(references, candidates)
        each = [list(map(float, row)) for row in each] if name == "bleu" else list(map(float, each))
        record[name] = {"corpus": list(map(float, corpus)) if name == "bleu" else float(corpus), "each": each}
    ours = meteor.meteor(
        [candidates[i][0].split() for i in range(len(pairs))],
        [[each.split() for each in references[i]] for i in range(len(pairs))],
    )
    assert abs(ours.corpus - record["meteor"]["corpus"]) < 1e-9
    assert max(abs(ours.each - record["meteor"]["each"])) < 1e-9
    text = json.dumps(record, ensure_ascii=False).encode()
    (HERE / "captions.json.xz").write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
