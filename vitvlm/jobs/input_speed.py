"""How fast images and captions become batches, against PyTorch's DataLoader with Pillow, on the same JPEGs."""

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.table import Table

from vitvlm.data import sources
from vitvlm.data.batches import train_batches
from vitvlm.data.operations.colour import STATISTICS
from vitvlm.data.operations.geometry import _window
from vitvlm.data.sources.prepared import EMOJI

SIZE = 224
LENGTH = 32
HEIGHT, WIDTH = 375, 500
SHARD = 250
CROP = f"decode|random_resized_crop({SIZE}, method='{{method}}')|flip|normalize('imagenet')"
TOKENS = f"|tokenize('emoji', {LENGTH})"
WARM = 4  # batches before the clock starts: workers are up and their buffers full


def write_examples(folder: Path, count: int, seed: int = 0) -> None:
    """Synthetic photographs, JPEGs of quality 90: tars, an ArrayRecord data set, and files beside a captions.json."""
    emoji, captions, images = sources.open("emoji", "train"), [], []
    (folder / "files").mkdir(parents=True)
    for number in range(count):
        about = emoji[number % len(emoji)]
        images.append(_photograph(about["image"], np.random.default_rng((seed, number))))
        captions.append(about["name"])
        (folder / "files" / f"{number:06d}.jpg").write_bytes(images[-1])
    (folder / "captions.json").write_text(json.dumps(captions))
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:05d}.tar", "w") as archive:
            for number in range(start, min(count, start + SHARD)):
                _add(archive, f"{number:06d}.jpg", images[number])
                _add(archive, f"{number:06d}.txt", captions[number].encode())
                _add(archive, f"{number:06d}.json", json.dumps({"key": number}).encode())
    _Photographs(images, captions, data_dir=folder / "records").download_and_prepare(file_format="array_record")


class _Photographs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    name = "photographs"

    def __init__(self, images: list[bytes], captions: list[str], **options: Any):
        self._made = list(zip(images, captions))
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="jpeg")
        fields = {"image": image, "caption": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["photo"])}
        return tfds.core.DatasetInfo(builder=self, description="", features=tfds.features.FeaturesDict(fields))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._examples()}

    def _generate_examples(self) -> None:
        raise NotImplementedError

    def _examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (image, caption) in enumerate(self._made):
            yield number, {"image": io.BytesIO(image), "caption": caption, "label": 0}


def _photograph(emoji: bytes, rng: np.random.Generator) -> bytes:
    """Emoji of several sizes on a smooth background, with the noise of a sensor."""
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    with Image.open(io.BytesIO(emoji)) as opened:
        drawn = opened.convert("RGBA")
    for _ in range(4):
        side = int(rng.integers(60, 240))
        place = int(rng.integers(-40, WIDTH - 60)), int(rng.integers(-40, HEIGHT - 60))
        layer = drawn.resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(layer, place, layer)
    noisy = np.asarray(picture) + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
    content = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


class _PillowFiles:
    """A PyTorch data set that does as torchvision: Pillow's crop and resize, to float32, normalised; and the tokens."""

    def __init__(self, folder: Path):
        self.files = sorted((folder / "files").glob("*.jpg"))
        self.captions = json.loads((folder / "captions.json").read_text())
        self.tokenizer = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        import torch
        from tokenizers import Tokenizer

        if self.tokenizer is None:  # in the worker
            torch.set_num_threads(1)
            self.tokenizer = Tokenizer.from_file(str(EMOJI / "tokenizer.json"))
            self.tokenizer.enable_truncation(LENGTH)
            self.tokenizer.enable_padding(length=LENGTH)
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS["imagenet"])
            self.mean, self.std = mean, std
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        with self.files[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        top, left, height, width = _window(image.height, image.width, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return pixels.sub_(self.mean).div_(self.std), torch.tensor(self.tokenizer.encode(self.captions[index]).ids)


def measure(folder: Path, rounds: int, batch_size: int = 64, batches: int = 15) -> dict[str, list[float]]:
    """Images per second of each way with one worker, in alternating rounds."""
    tars, records = f"webdataset:{folder}/*.tar", f"tfds:{_prepared(folder)}"

    def ours(spec: str, split: str, method: str) -> Callable[[], Any]:
        operations = CROP.format(method=method) + TOKENS
        source = sources.open(spec, split)
        return lambda: train_batches(source, operations, batch_size, seed=0, workers=1, shuffle_buffer=200)

    ways: dict[str, Callable[[], Any]] = {
        "PyTorch DataLoader, Pillow": lambda: _loader(folder, batch_size),
        "tars, method='bilinear'": ours(tars, "all", "bilinear"),
        "tars, method='fast'": ours(tars, "all", "fast"),
        "ArrayRecord, method='fast'": ours(records, "train", "fast"),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, start in ways.items():
            seen[name].append(_rate(start(), batches, batch_size))
    return seen


def table(seen: dict[str, list[float]]) -> Table:
    """Medians [quartiles], and the ratio to PyTorch round by round."""
    title = f"JPEGs of {WIDTH}x{HEIGHT} to crops of {SIZE} and {LENGTH} tokens, one worker process"
    shown = Table("what", "images/s per worker", "ratio", title=title)
    base = np.array(next(iter(seen.values())))
    for name, rates in seen.items():
        shown.add_row(name, _quartiles(np.array(rates), 0), _quartiles(np.array(rates) / base, 2))
    return shown


def _quartiles(values: np.ndarray, digits: int) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _prepared(folder: Path) -> Path:
    return next((folder / "records").rglob("dataset_info.json")).parent


def _loader(folder: Path, batch_size: int) -> Any:
    import torch

    workers = {"num_workers": 1, "prefetch_factor": 2}
    return torch.utils.data.DataLoader(_PillowFiles(folder), batch_size, shuffle=True, drop_last=True, **workers)


def _rate(batches: Any, count: int, batch_size: int) -> float:
    """Images per second once it runs; batches may end and begin anew."""
    iterator = iter(batches)
    for _ in range(WARM):
        next(iterator)
    start, taken = time.perf_counter(), 0
    while taken < count and next(iterator, None) is not None:
        taken += 1
    rate = taken * batch_size / (time.perf_counter() - start)
    if hasattr(batches, "close"):
        batches.close()
    return rate
