"""Records what CLIP_benchmark's own code says of made-up embeddings, which clip_benchmark.npz holds beside its figures.

    pip install --no-deps clip_benchmark==1.6.2; pip install torch scikit-learn tqdm
    python tests/parity/recorded/record_clip_benchmark.py

Texts are numbers: row i of the table of text embeddings; so are images.
"""

import pathlib
from types import SimpleNamespace

import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

# Its accuracy() makes floats of arrays of one number, which NumPy no longer allows.
zeroshot_classification.float = lambda array: np.asarray(array).item()

CLASSES, TEMPLATES, IMAGES, WIDTH = 7, 3, 61, 8


def made_up() -> dict[str, np.ndarray]:
    """Embeddings of any length: images near their class and their one to four captions, but not very."""
    rng = np.random.default_rng(0)
    label = rng.integers(CLASSES, size=IMAGES)
    centre = rng.normal(size=(CLASSES, WIDTH))
    image = centre[label] + 1.5 * rng.normal(size=(IMAGES, WIDTH))
    owner = np.repeat(np.arange(IMAGES), rng.integers(1, 5, size=IMAGES))
    caption = image[owner] + 2.0 * rng.normal(size=(len(owner), WIDTH))
    prompt = np.repeat(centre, TEMPLATES, axis=0) + rng.normal(size=(CLASSES * TEMPLATES, WIDTH))
    floats = {"image": image, "caption": caption, "prompt": prompt * rng.uniform(0.5, 4, size=(len(prompt), 1))}
    return {name: x.astype(np.float32) for name, x in floats.items()} | {"label": label, "owner": owner}


def figures(made: dict[str, np.ndarray]) -> dict[str, float]:
    image, caption, prompt = (torch.from_numpy(made[name]) for name in ("image", "caption", "prompt"))

    class Batches(list):
        dataset = SimpleNamespace(classes=list(range(CLASSES)))

    def model(texts):
        return SimpleNamespace(encode_image=lambda i: image[i], encode_text=lambda i: texts[i])

    def tokenize(texts):
        return torch.tensor([int(text) for text in texts])

    def prompts(texts):
        return torch.tensor([int(name) * TEMPLATES + int(t) for name, t in (x.split() for x in texts)])

    numbers = torch.arange(IMAGES)
    labelled = Batches((part, torch.from_numpy(made["label"])[part]) for part in numbers.split(8))
    found = zeroshot_classification.evaluate(
        model(prompt),
        labelled,
        prompts,
        [str(c) for c in range(CLASSES)],
        [f"{{c}} {t}" for t in range(TEMPLATES)],
        "cpu",
        amp=False,
    )
    captions = [[str(j) for j in np.flatnonzero(made["owner"] == i)] for i in range(IMAGES)]
    paired = Batches((part, [captions[i] for i in part.tolist()]) for part in numbers.split(8))
    return found | zeroshot_retrieval.evaluate(model(caption), paired, tokenize, "cpu", False, recall_k_list=[1, 5, 10])


if __name__ == "__main__":
    made = made_up()
    found = {name: np.float64(value) for name, value in figures(made).items()}
    print(found)
    np.savez(pathlib.Path(__file__).parent / "clip_benchmark.npz", **made, **found)
