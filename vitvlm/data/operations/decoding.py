"""Decoding of image files to pixels."""

import io

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations.parsing import traced_operation
from vitvlm.data.operations.pixels import NewPixels, Pixels, from_pillow, to_pillow
from vitvlm.data.operations.steps import Steps, Upright

# Raster formats that Pillow decodes itself. EPS, for one, would start another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What says how an image is to be turned: EXIF and XMP.
_TURNED = (b"Exif\0\0", b"tiff:Orientation")
_ORIENTATION = 0x0112  # the EXIF tag
# Passes over the pixels of a progressive JPEG: libjpeg writes 10, with marks inside a thumbnail some more.
USUAL_SCANS, MOST_SCANS = 16, 100
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def traced_decode(
    image: bytes | Pixels, channels: int = 3, background: int | tuple = 255, max_pixels: int = 50_000_000
) -> tuple[NewPixels, Steps]:
    """Decodes as `decode` does; the steps say how the stored pixels were turned."""
    if channels not in _MODES:
        raise ValueError(f"channels={channels} must be 1 (grey), 3 (RGB) or 4 (RGBA)")
    if isinstance(image, np.ndarray):
        return image if image.shape[2] == channels else _convert(to_pillow(image), channels, background), []
    _check_scans(image, max_pixels)
    plain = _plain_jpeg(image, max_pixels) if channels == 3 else None
    if plain is not None:
        return plain, []
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            width, height = opened.size
            _check_size(width, height, max_pixels)
            turn = Upright((height, width), opened.getexif().get(_ORIENTATION, 1))
            upright = ImageOps.exif_transpose(opened)
            return _convert(_to_8_bits(upright), channels, background), [turn]
    except (UnreadableImage, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"{len(image)} bytes that are not an image of {', '.join(FORMATS)}") from error
    except Exception as error:
        # On damaged bytes Pillow's readers raise errors of many kinds: OSError, ValueError, SyntaxError, struct.error …
        raise UnreadableImage(f"{error} ({type(error).__name__})") from error


@traced_operation("decode", traced_decode)
def decode(
    image: bytes | Pixels, channels: int = 3, background: int | tuple = 255, max_pixels: int = 50_000_000
) -> NewPixels:
    """Pixels uint8 [H, W, channels]: 1 channel is grey, 3 are RGB, 4 are RGBA.

    Turned upright as EXIF says; of an animation the first frame; palettes and CMYK resolved; 16 bits scaled to 8;
    transparent parts laid over `background` (0 to 255, or (red, green, blue)) unless channels=4. An image that already
    is pixels only changes its channels.

    Raises UnreadableImage, before anything is decoded, for formats other than FORMATS, for more than `max_pixels` and
    for a JPEG of many more scans than programs write, and otherwise for damaged files.
    """
    return traced_decode(image, channels, background, max_pixels)[0]


def pixels_of(image: Image.Image) -> NewPixels:
    """The pixels of a Pillow image, grey, RGB or, where parts are transparent, RGBA; upright as EXIF says.

    Raises UnreadableImage for one that cannot be read, or with pixels of 32 bits.
    """
    try:
        upright = _to_8_bits(ImageOps.exif_transpose(image))
        mode = "RGBA" if upright.has_transparency_data else "L" if upright.mode in ("1", "L") else "RGB"
        return from_pillow(upright.convert(mode))
    except OSError as error:
        raise UnreadableImage(f"{error} ({type(error).__name__})") from error


def _plain_jpeg(content: bytes, max_pixels: int) -> NewPixels | None:
    """The pixels that Pillow gives, in less time; None where there is more to do, or anything to complain of."""
    header = _jpeg_header(content)
    if not header or any(mark in header for mark in _TURNED):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours != "YCbCr":
            return None
        _check_size(width, height, max_pixels)
        return simplejpeg.decode_jpeg(content)
    except ValueError:
        return None


def _jpeg_header(content: bytes) -> bytes:
    """Returns a JPEG up to its compressed pixels, or all of it if they are not found; nothing of other formats."""
    if not content.startswith(b"\xff\xd8"):
        return b""
    place = 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":
        place += 2 + int.from_bytes(content[place + 2 : place + 4])  # each segment says its length
    return content[:place] if content[place : place + 2] == b"\xff\xda" else content


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableImage(f"{width}x{height} pixels, more than decode(max_pixels={max_pixels}) allows")


def _check_scans(content: bytes, max_pixels: int) -> None:
    """Raises UnreadableImage for a progressive JPEG that would take minutes: each scan goes over all pixels again."""
    scans = content.count(b"\xff\xda") if content.startswith(b"\xff\xd8") else 0
    if scans <= USUAL_SCANS:
        return
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return  # Pillow says what is wrong
    if scans > MOST_SCANS or scans * width * height > USUAL_SCANS * max_pixels:
        raise UnreadableImage(f"a JPEG of {scans:,} scans of {width}x{height} pixels, which would take too long")


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableImage(f"32-bit pixels (mode {image.mode}) have no fixed range: convert them to 8 or 16 bits")
    return image


def _convert(image: Image.Image, channels: int, background: int | tuple) -> NewPixels:
    if channels < 4 and image.has_transparency_data:
        layer = image.convert("RGBA")
        colour = (background,) * 3 if isinstance(background, int) else tuple(background)
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (*colour, 255)), layer).convert("RGB")
    return from_pillow(image.convert(_MODES[channels]))
