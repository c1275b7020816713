"""Image files for tests: patterns that survive encoding, and every kind of file that is hard to read."""

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pattern(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, channels], or [height, width] for one channel: a smooth random picture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
    ]
    stacked = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return stacked[..., 0] if channels == 1 else stacked


def encoded(image: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def png_bomb(side: int) -> bytes:
    """A PNG of side x side black pixels that takes a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    row = b"\0" * (1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (9, 7)) -> Path:
    """An image folder with so many PNGs per class; image i of class c is `pattern(seed=1000 c + i)`."""
    for c, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:03d}.png").write_bytes(encoded(pattern(*size, seed=1000 * c + i)))
    return root


def write_idx(folder, images, labels, compress):
    """MNIST's files, written from the format's definition."""
    write = gzip.compress if compress else bytes
    suffix = ".gz" if compress else ""
    for prefix in ("train", "t10k"):
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
        (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(write(header + images.tobytes()))
        header = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
        (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(write(header + labels.tobytes()))
