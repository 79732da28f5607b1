"""
A worker that makes thumbnails: an image in, a JPEG (or, with transparency, a PNG) out.

Needs Pillow. The picture fits a square of `--size` pixels, stands upright, and is never
enlarged. What is no image, or is too large to be decoded safely, is answered with 422.
"""

from __future__ import annotations

import argparse
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from jobgate.worker import Fail, Reply, serve

if TYPE_CHECKING:
    from jobgate.worker import Command

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""What is taken: every further decoder is one more way in for a hostile file."""

# Checked in `thumbnail` before anything is decoded, with a limit of our own.
Image.MAX_IMAGE_PIXELS = None


def thumbnail(command: Command, size: int, max_pixels: int) -> Reply:
    """
    Make one thumbnail.

    Raises:
        Fail: The body is no image, or one with too many pixels.
    """
    try:
        # Reads the header only; the pixels are decoded when they are first needed.
        image = Image.open(BytesIO(command.body), formats=FORMATS)
        pixels = image.width * image.height
        if pixels > max_pixels:
            title, detail = "the image is too large", f"{pixels} pixels, at most {max_pixels}"
            raise Fail(title, detail, 422, retry=False)
        # Has a JPEG decoded at a fraction of its size, which saves most of the work.
        image.thumbnail((size, size))
        upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        title = "the body is no image of a kind that is taken"
        raise Fail(title, ", ".join(FORMATS), 422, retry=False) from None
    except (OSError, SyntaxError, ValueError) as error:
        title = "the image cannot be decoded"
        raise Fail(title, str(error), 422, retry=False) from None
    out = BytesIO()
    profile = image.info.get("icc_profile")
    if upright.has_transparency_data:
        upright.convert("RGBA").save(out, "PNG", icc_profile=profile)
        return Reply(out.getvalue(), "image/png")
    if upright.mode not in ("RGB", "L"):
        upright, profile = upright.convert("RGB"), None
    upright.save(out, "JPEG", quality=85, icc_profile=profile)
    return Reply(out.getvalue(), "image/jpeg")


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="A jobgate worker that makes thumbnails.")
    parser.add_argument("--size", type=int, default=256, help="pixels of the longer side")
    parser.add_argument("--max-pixels", type=int, default=50_000_000, help="larger ones get 422")
    arguments = parser.parse_args()
    Image.init()
    serve(partial(thumbnail, size=arguments.size, max_pixels=arguments.max_pixels))


if __name__ == "__main__":
    main()
