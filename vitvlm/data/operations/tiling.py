"""Large images as tiles of the size that an encoder takes, as each family of vision-language models cuts them.

An operation replaces `images` (or one `image`) by the tiles of each, image by image, and writes `image_texts`, what
each image's marker in the text stands for, with all image tokens spelt out. Every tile keeps the trace to the pixels of
its image, so that what is seen in it can be shown there.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vitvlm.core.limits import Length, Side
from vitvlm.data.operations import tracing
from vitvlm.data.operations.parsing import example_operation
from vitvlm.data.operations.steps import Resize, Steps, Window, apply

Size = tuple[int, int]  # (height, width)

LARGEST = 4096  # of a side, in Idefics3's processor
GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # of LLaVA-NeXT
NEWLINE = -1  # in the rows of one image: the model's newline vector


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Plan of how one image is cut.

    Fields:
      shared: steps that come first, done once; tiles: those that each tile takes from there.
      text: what the image's marker in the text stands for.
      rows: of the image's own tokens, tile by tile, in the order of the text, NEWLINE at that vector; None: one after
        the other.
    """

    shared: Steps
    tiles: Sequence[Steps]
    text: str
    rows: np.ndarray | None = None


def _operation(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return example_operation(
        name,
        reads=lambda given: {given["field"]: given["field"]},
        writes=lambda given: ("images",),
        makes=lambda given: ("image_texts", "image_rows"),
    )


@_operation("tile_idefics3")
def tile_idefics3(
    example: dict[str, Any],
    tile: Side,
    tokens: Length,
    longest: Side | None = None,
    split: bool = True,
    method: str = "lanczos",
    image_token: str = "<image>",
    around: str = "<fake_token_around_image>",
    whole: str = "<global-img>",
    field: str = "images",
) -> dict[str, Any]:
    """Cuts each image as Idefics3 and SmolVLM do: rows and columns of tiles, then the whole image as one more.

    The longer side is resized to `longest`, both to multiples of `tile`, whose aspect may differ a little. An image of
    one tile is that alone. `tokens` is how many image tokens stand for a tile; without `split` an image is one tile.
    """

    def plan(shape: Size, number: int, count: int) -> Tiling:
        def said(marker: str) -> str:
            return f"{around}{marker}{image_token * tokens}"

        steps = [] if longest is None else [Resize(shape, _longest_side(shape, longest), method)]
        before = steps[-1].size if steps else shape
        one = Resize(before, (tile, tile), method)
        if not split:
            return Tiling(steps, [[one]], said(whole) + around)
        size = _multiples(before, tile)
        steps.append(Resize(before, size, method))
        if size == (tile, tile):
            return Tiling(steps, [[]], said(whole) + around)
        h, w = size[0] // tile, size[1] // tile
        texts = ["".join(said(f"<row_{r + 1}_col_{c + 1}>") for c in range(w)) + "\n" for r in range(h)]
        tiles = [*_windows(size, tile), [Resize(size, (tile, tile), method)]]
        return Tiling(steps, tiles, f"{''.join(texts)}\n{said(whole)}{around}")

    return _tiled(example, field, plan)


@_operation("tile_nanovlm")
def tile_nanovlm(
    example: dict[str, Any],
    tile: Side,
    tokens: Length,
    longest: Side,
    enlarge: bool = False,
    method: str = "bicubic",
    whole_method: str = "bilinear",
    image_token: str = "<|image|>",
    whole: str = "<|global_image|>",
    field: str = "images",
) -> dict[str, Any]:
    """Cuts each image as nanoVLM does: the whole image as one tile, then rows and columns of them.

    The longer side becomes the next multiple of `tile` up to `longest` (exactly that with `enlarge`), the other side is
    rounded up to one. An image of one tile is that alone; of several images each has its number in the text.
    """

    def plan(shape: Size, number: int, count: int) -> Tiling:
        size = _rounded_up(shape, tile, longest, enlarge)
        steps = [Resize(shape, size, method)]
        text = (f"<image: {number}>" if count > 1 else "") + whole + image_token * tokens
        if size == (tile, tile):
            return Tiling(steps, [[]], text)
        h, w = size[0] // tile, size[1] // tile
        text += "".join(f"<row_{r + 1}_col_{c + 1}>{image_token * tokens}" for r in range(h) for c in range(w))
        return Tiling(steps, [[Resize(size, (tile, tile), whole_method)], *_windows(size, tile)], text)

    return _tiled(example, field, plan)


@_operation("tile_llava_next")
def tile_llava_next(
    example: dict[str, Any],
    tile: Side,
    side: int,
    grids: tuple = GRIDS,
    method: str = "bicubic",
    image_token: str = "<image>",
    field: str = "images",
) -> dict[str, Any]:
    """Cuts each image as LLaVA-NeXT does: the whole image squeezed into one tile, then the best grid of them.

    The grid is the one of `grids`, (height, width) in pixels, that keeps most of the image's pixels and wastes fewest;
    the image is resized into it and padded with black. A tile has side x side tokens. In the text stand those of the
    whole image, then, row by row of the grid, those that the padding does not fill, each row with the model's newline
    vector behind it: `image_rows` say so, of all tiles together, behind which the newline's row is.
    """
    for grid in grids:
        if len(grid) != 2 or any(length % tile or length < tile for length in grid):
            raise ValueError(f"grids: {grid} is not (height, width) in whole tiles of {tile} pixels")

    def plan(shape: Size, number: int, count: int) -> Tiling:
        target = best_grid(shape, grids)
        size = _into(shape, target)
        top, left = ((outer - inner) // 2 for outer, inner in zip(target, size))
        padded = [Resize(shape, size, method), Window(-top, -left, target, 0)]
        tiles = [[Resize(shape, (tile, tile), method)], *([*padded, *cut] for cut in _windows(target, tile))]
        rows = unpadded_rows(shape, (target[0] // tile, target[1] // tile), side)
        return Tiling([], tiles, image_token * len(rows), rows)

    return _tiled(example, field, plan, rows_of_a_tile=side * side)


def best_grid(shape: Size, grids: Sequence[Size]) -> Size:
    """The grid, (height, width) in pixels, in which most pixels of an image are kept, and of these the smallest."""

    def kept(grid: Size) -> int:
        scale = min(grid[1] / shape[1], grid[0] / shape[0])
        return min(int(shape[1] * scale) * int(shape[0] * scale), shape[0] * shape[1])

    return max((tuple(grid) for grid in grids), key=lambda grid: (kept(grid), kept(grid) - grid[0] * grid[1]))


def unpadded_rows(shape: Size, tiles: Size, side: int) -> np.ndarray:
    """Rows of a LLaVA-NeXT image's tokens in the order of its text, int32: see `tile_llava_next`.

    Args:
      shape: of the image before it was resized; tiles: rows and columns of the grid; side: of a tile, in tokens.
    """
    H, W = tiles[0] * side, tiles[1] * side
    y, x = np.mgrid[:H, :W]
    grid = (1 + y // side * tiles[1] + x // side) * side * side + y % side * side + x % side
    if shape[1] / shape[0] > W / H:
        margin = (H - int(round(shape[0] * (W / shape[1]), 7))) // 2
        grid = grid[margin : H - margin]
    else:
        margin = (W - int(round(shape[1] * (H / shape[0]), 7))) // 2
        grid = grid[:, margin : W - margin]
    lines = np.concatenate([grid, np.full((len(grid), 1), NEWLINE)], axis=1)
    return np.concatenate([np.arange(side * side), lines.ravel()]).astype(np.int32)


def _tiled(
    example: dict[str, Any], field: str, plan: Callable[[Size, int, int], Tiling], rows_of_a_tile: int = 0
) -> dict[str, Any]:
    """The example with the tiles of its images, as each one's plan says."""
    if field not in ("image", "images"):
        raise ValueError(f"field={field!r}: tiles are cut of 'image' or 'images'")
    images, origins = images_of(example, field)
    tiles, tile_origins, texts, rows = [], [], [], []
    for number, (image, origin) in enumerate(zip(images, origins)):
        tiling = plan(image.shape[:2], number, len(images))
        if tiling.rows is not None:
            rows.append(np.where(tiling.rows == NEWLINE, NEWLINE, tiling.rows + len(tiles) * rows_of_a_tile))
        shared, origin = apply(image, tiling.shared), origin.after(tiling.shared)
        tiles += [apply(shared, steps) for steps in tiling.tiles]
        tile_origins += [origin.after(steps) for steps in tiling.tiles]
        texts.append(tiling.text)
    own = len(tiles) * rows_of_a_tile
    rows = [np.where(each == NEWLINE, own, each).astype(np.int32) for each in rows]
    new = {"images": tiles, "image_texts": tuple(texts)} | ({"image_rows": tuple(rows)} if rows else {})
    return without(example, field) | new | {tracing.ORIGINS: traced(example, field, tile_origins)}


def images_of(example: dict[str, Any], field: str) -> tuple[list[np.ndarray], list[tracing.Origin]]:
    """The images of a field, one or several, with their origins. Raises ValueError for what is not decoded pixels."""
    if field not in example:
        raise ValueError(f"no field {field!r} with an image; there is: {', '.join(sorted(example))}")
    value = example[field]
    images = list(value) if tracing.several(value) else [value]
    for image in images:
        if not isinstance(image, np.ndarray):
            raise ValueError("the image is still encoded: put decode first")
        if image.dtype != np.uint8:
            raise ValueError(f"works on uint8 pixels, not on {image.dtype}: put it before normalize")
    known = example.get(tracing.ORIGINS, {}).get(field)
    known = list(known) if isinstance(known, list | tuple) else [known] * len(images)
    return images, [one or tracing.origin_of(image) for one, image in zip(known, images, strict=True)]


def without(example: dict[str, Any], field: str) -> dict[str, Any]:
    """The example without the single image that several have taken the place of."""
    return {name: value for name, value in example.items() if name != field}


def traced(example: dict[str, Any], field: str, origins: list[tracing.Origin]) -> dict[str, Any]:
    """The origins of all fields of images, those of `images` being these."""
    return {name: each for name, each in example.get(tracing.ORIGINS, {}).items() if name != field} | {
        "images": origins
    }


def _windows(size: Size, tile: int) -> Iterator[Steps]:
    """The tiles of an image of whole ones, row by row."""
    for top in range(0, size[0], tile):
        for left in range(0, size[1], tile):
            yield [Window(top, left, (tile, tile))]


def _longest_side(shape: Size, longest: int) -> Size:
    """Idefics3's size with the longer side `longest` and the other an even number, none beyond LARGEST."""
    height, width = shape
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > LARGEST:
        width, height = LARGEST, int(LARGEST / aspect)
    elif height > width and height > LARGEST:
        height, width = LARGEST, int(LARGEST * aspect)
    return max(height, 1), max(width, 1)


def _multiples(size: Size, tile: int) -> Size:
    """Idefics3's whole tiles: the longer side rounded up, the other to what the aspect gives then, rounded up."""
    height, width = size
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return math.ceil(int(width / aspect) / tile) * tile, width
    height = math.ceil(height / tile) * tile
    return height, math.ceil(int(height * aspect) / tile) * tile


def _rounded_up(shape: Size, tile: int, longest: int, enlarge: bool) -> Size:
    """nanoVLM's whole tiles."""
    long, short = max(shape), min(shape)
    longer = longest if enlarge else min(longest, math.ceil(long / tile) * tile)
    shorter = max(math.ceil(short * (longer / long) / tile) * tile, tile)
    return (shorter, longer) if shape[1] >= shape[0] else (longer, shorter)


def _into(shape: Size, target: Size) -> Size:
    """The largest size of an image's aspect, rounded up, that a target contains."""
    across, down = target[1] / shape[1], target[0] / shape[0]
    if across < down:
        return min(math.ceil(shape[0] * across), target[0]), target[1]
    return target[0], min(math.ceil(shape[1] * down), target[1])
