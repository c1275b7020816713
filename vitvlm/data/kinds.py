"""Kinds of an example's fields: what geometry does with a field, and how a batch holds it.

An example is a dictionary of named fields; an image and a label are two among others. A source declares the kinds of
its fields (`Source.fields`), operations declare those of fields that they make (`boxes`, `relations`, …).

| kind | an example holds | geometry | a batch holds |
|---|---|---|---|
| image | an encoded file or pixels [H, W, C] | acts on it | float32 [B, H, W, C] |
| images | several of those, of any sizes | acts on each, by a draw of its own | [B, I, H, W, C] |
| video | several frames | acts on each, by the same draw | [B, T, H, W, C] |
| boxes | left, top, right, bottom in pixels, float32 [n, 4] | moves and clips them | [B, n, 4] |
| points | x, y in pixels, float32 [n, 2] | moves them; swaps named ones in mirror images | [B, n, 2] |
| masks | bool [n, H, W] | moves them, nearest pixel | [B, n, H, W] |
| relations | texts that name directions | swaps words such as left and right in mirror images | strings, on the host |
| text, texts | a string; a tuple of them | nothing | strings, on the host; `tokenize` makes int32 |
| array | numbers of one shape | nothing | [B, …] |
"""

import dataclasses
from collections.abc import Mapping

IMAGES = ("image", "images", "video")
MOVED = ("boxes", "points", "masks", "relations")
KINDS = (*IMAGES, *MOVED, "text", "texts", "array")
LEFT_RIGHT = (("left", "right"),)
# Arrays with a row for each of `images` beside them, see `operations.patches.merge_patches`.
OF_EACH_IMAGE = ("images_patch_mask", "images_patch_grid", "image_times")


@dataclasses.dataclass(frozen=True)
class Field:
    """The kind of a field.

    Attributes:
      kind: one of KINDS.
      of: the image that the field belongs to, whose geometry moves it.
      names: of points, what each row is ("nose", "left_eye", "right_eye"), so that a mirror image swaps left and right.
      words: of relations and of points' names, the pairs of words that a mirror image swaps.
      shape: of an image, (H, W, C) where every example's is known without opening any.
    """

    kind: str
    of: str = "image"
    names: tuple[str, ...] = ()
    words: tuple[tuple[str, str], ...] = LEFT_RIGHT
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is none of {', '.join(KINDS)}")


Fields = Mapping[str, Field]

# Fields that need no declaration: their names say their kinds.
STANDARD: Fields = {name: Field(name) for name in (*IMAGES, "boxes", "points", "masks")}
