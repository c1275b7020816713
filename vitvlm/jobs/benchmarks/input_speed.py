"""Speed of making batches from images and captions, against PyTorch's DataLoader with Pillow, on the same JPEGs.

Everything runs in this process, ours in the one thread that makes batches ahead, so work on one core is compared. Other
jobs on the machine disturb images per second of CPU time the least.
"""

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.table import Table

from vitvlm.data import sources, writing
from vitvlm.data.batches import train_batches
from vitvlm.jobs.benchmarks import peers, quartiles

SIZE = 224
LENGTH = 32
HEIGHT, WIDTH = 375, 500
DISTINCT = 100  # photographs; more images repeat them
OPERATIONS = (
    f"decode|random_resized_crop({SIZE}, method={{method!r}})|flip|normalize('imagenet')|tokenize('emoji', {LENGTH})"
)
PEER = "PyTorch, Pillow"
WARM = 3  # batches before the clock starts: those made ahead are used up


class Speed(NamedTuple):
    """Images per second, of the clock and of CPU time."""

    per_second: float
    per_cpu_second: float


def write_examples(folder: Path, count: int) -> None:
    """Synthetic photographs, JPEGs of quality 90 with captions, in three forms.

    They are files beside a captions.json, tars, and a data set of ArrayRecord.
    """
    emoji = sources.open("emoji", "train")
    made = [emoji[number] for number in range(min(count, DISTINCT))]
    photographs = [(_photograph(about["image"], number), about["name"]) for number, about in enumerate(made)]
    pairs = [photographs[number % DISTINCT] for number in range(count)]
    (folder / "files").mkdir(parents=True)
    with tarfile.open(folder / "photographs.tar", "w") as archive:
        for number, (image, caption) in enumerate(pairs):
            (folder / "files" / f"{number:06d}.jpg").write_bytes(image)
            _add(archive, f"{number:06d}.jpg", image)
            _add(archive, f"{number:06d}.txt", caption.encode())
            _add(archive, f"{number:06d}.json", json.dumps({"key": number}).encode())
    (folder / "captions.json").write_text(json.dumps([caption for _, caption in pairs]))
    jpeg = tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="jpeg")
    features = {"image": jpeg, "caption": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["photo"])}
    records = ((number, {"image": image, "caption": text, "label": 0}) for number, (image, text) in enumerate(pairs))
    with writing.whole(folder / "records") as draft:
        writing.write(draft, "photographs", features, {"train": records}, shuffled=True)


def ways(folder: Path, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Each way's name, and what starts its endless batches; PyTorch's first.

    Ours are those of `train_batches`; PyTorch's are (images [B, 3, 224, 224], ids [B, 32]).
    """
    tars = sources.open(f"webdataset:{folder}/*.tar", "all")
    records = sources.open(f"tfds:{folder / 'records'}", "train")

    def ours(source: sources.Source, method: str) -> Callable[[], Any]:
        operations = OPERATIONS.format(method=method)
        return lambda: train_batches(source, operations, batch_size, seed=0, shuffle_buffer=4 * batch_size)

    return {
        PEER: lambda: peers.photograph_batches(folder, batch_size, SIZE, LENGTH),
        "tars, bilinear": ours(tars, "bilinear"),
        "ArrayRecord, bilinear": ours(records, "bilinear"),
        "tars, fast": ours(tars, "fast"),
        "ArrayRecord, fast": ours(records, "fast"),
    }


def measure(folder: Path, rounds: int, batch_size: int = 32, batches: int = 4) -> dict[str, list[Speed]]:
    """The speed of each way in each of the alternating rounds. Raises ConfigError without PyTorch."""
    peers.require(1, ("torch",))
    started = ways(folder, batch_size)
    seen: dict[str, list[Speed]] = {name: [] for name in started}
    for _ in range(rounds):
        for name, start in started.items():
            seen[name].append(_speed(start(), batches, batch_size))
    return seen


def table(seen: dict[str, list[Speed]]) -> Table:
    """Medians [quartiles], and of the ratios to PyTorch round by round."""
    title = f"JPEGs of {WIDTH}x{HEIGHT} to crops of {SIZE} and {LENGTH} tokens, on one core"
    shown = Table("what", "images / CPU s", "ratio", "images / s", "ratio", title=title)
    base = np.array(seen[PEER])
    for name, speeds in seen.items():
        rates, ratios = np.array(speeds), np.array(speeds) / base
        cells = [cell for i in (1, 0) for cell in (quartiles.shown(rates[:, i], 0), quartiles.shown(ratios[:, i], 2))]
        shown.add_row(name, *cells)
    return shown


def _speed(batches: Iterator[Any], count: int, batch_size: int) -> Speed:
    """Measures the making of `count` batches, which is slower than taking them, so as many begin as end meanwhile."""
    for _ in range(WARM):
        next(batches)
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    batches.close()
    _settle()
    return Speed(count * batch_size / seconds, count * batch_size / cpu_seconds)


def _settle() -> None:
    """Waits for the batches that are still being made, as closing does not."""
    busy = True
    while busy:
        before = time.process_time()
        time.sleep(0.1)
        busy = time.process_time() - before > 0.01


def _photograph(emoji: bytes, seed: int) -> bytes:
    """Emoji of several sizes on a smooth background, with the noise of a sensor."""
    rng = np.random.default_rng(seed)
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
