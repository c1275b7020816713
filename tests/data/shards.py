"""Tars for tests, written by Python's `tarfile` as img2dataset lays them out."""

import io
import json
import tarfile
from pathlib import Path

from tests.data import pictures


def write(path: Path, samples: dict[str, dict[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """An archive of {key: {extension: content}}, gzipped if its name ends in gz."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=form) as archive:
        for key, files in samples.items():
            for extension, content in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def sample(number: int, size: tuple[int, int] = (9, 7)) -> dict[str, bytes]:
    """An image, its caption and what else is known of it."""
    about = {"key": f"{number:05d}", "width": size[1], "url": None}
    return {
        "png": pictures.encoded(pictures.pattern(*size, seed=number)),
        "txt": f"picture {number}\n".encode(),
        "json": json.dumps(about).encode(),
    }


def folder(root: Path, counts: list[int], start: int = 0, suffix: str = "tar") -> Path:
    """Shards 00000.tar … of so many samples each."""
    root.mkdir(exist_ok=True)
    for shard, count in enumerate(counts):
        write(root / f"{shard:05d}.{suffix}", {f"{start + i:05d}": sample(start + i) for i in range(count)})
        start += count
    return root
