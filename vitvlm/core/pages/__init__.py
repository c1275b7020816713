"""Pages that need nothing but a browser: everything inside one file, light and dark, no request to anywhere.

A page's own template begins with `{% extends "base.html" %}` and fills the blocks title, style, heading, content and
script; what `data` it is given, its script reads with `JSON.parse` from the element `#data`.
"""

import base64
import io
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

QUALITY = 75  # of WebP thumbnails


def render(package: str, template: str, data: Any = None, **values: Any) -> str:
    """The page of a template in the folder `templates` of a package; texts are escaped, an unknown name is an error."""
    loaders = [jinja2.PackageLoader(package), jinja2.PackageLoader("vitvlm.core.pages")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(data=data, **values)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """The bytes as an address that holds them."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def thumbnail(image: UInt8[np.ndarray, "H W C"] | Image.Image, side: int) -> str:
    """A WebP of at most `side` pixels, never enlarged, as a data URI; C is 1 (grey), 3 (RGB) or 4 (RGBA)."""
    picture = (
        image if isinstance(image, Image.Image) else Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    )
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return data_uri(buffer.getvalue(), "image/webp")


def percent(share: float) -> str:
    """12.3 % of 0.1234: what tables of shares show."""
    return f"{100 * share:.1f} %"
