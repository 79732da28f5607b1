"""
Four workers that take an image in: `python ingest.py ROLE`.

`store` puts it into an S3-compatible storage under the digest of its bytes. `colours` and `facts`
fetch it from there and look at it, each in its own way and at the same time. `join` puts what all
of them found beside the image, as one JSON document, which is its reply, too.

Needs Pillow and boto3, which reads in the file that `AWS_CONFIG_FILE` names where the storage is.
"""

from __future__ import annotations

import argparse
import json
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from PIL import ExifTags, Image, ImageStat, UnidentifiedImageError

from jobgate.worker import Fail, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.client import BaseClient

    from jobgate.worker import Command

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""What is taken: every further decoder is one more way in for a hostile file."""
MAX_PIXELS = 50_000_000
SHADES = 8
LONGEST = 200
"""Characters that are kept of what somebody, or a camera, has written into it."""

# Checked in `opened` before anything is decoded, with a limit of our own.
Image.MAX_IMAGE_PIXELS = None


class Ingest:
    """
    The four roles.

    Args:
        client: boto3's client of the storage.
        bucket: Where everything goes.
    """

    def __init__(self, client: BaseClient, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def store(self, command: Command) -> dict[str, Any]:
        """Put the image away; to put it away twice changes nothing."""
        image = opened(command.body)
        key = sha256(command.body).hexdigest() + "." + str(image.format).lower()
        kind = Image.MIME[str(image.format)]
        self._put(key, command.body, kind)
        return {"bucket": self._bucket, "key": key, "bytes": len(command.body), "type": kind}

    def colours(self, command: Command) -> dict[str, Any]:
        """Which colours it has, the most frequent first, and how bright it is."""
        image = self._fetch(command)
        try:
            image.thumbnail((128, 128))
        except OSError as error:
            raise Fail("the image cannot be decoded", str(error), 422, retry=False) from None
        image = image.convert("RGB")
        counts = image.quantize(SHADES).convert("RGB").getcolors() or []
        total = sum(count for count, _ in counts)
        return {
            "colours": [
                {"colour": "#{:02x}{:02x}{:02x}".format(*colour), "share": round(count / total, 3)}
                for count, colour in sorted(counts, reverse=True)
            ],
            "brightness": round(ImageStat.Stat(image.convert("L")).mean[0] / 255, 3),
        }

    def facts(self, command: Command) -> dict[str, Any]:
        """Its dimensions, and what has been written into it."""
        image = self._fetch(command)
        exif = {
            ExifTags.TAGS.get(tag, f"tag {tag}"): str(value).strip("\0 ")[:LONGEST]
            for tag, value in image.getexif().items()
        }
        return {
            "format": image.format,
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
            "comment": image.info.get("comment", b"").decode(errors="replace")[:LONGEST],
            "exif": exif,
        }

    def join(self, command: Command) -> dict[str, Any]:
        """Put what was found beside the image."""
        found = {name: json.loads(its.body) for name, its in command.inputs.items()}
        document = {"image": found["store"], **found["facts"], **found["colours"]}
        key = found["store"]["key"] + ".json"
        self._put(key, json.dumps(document).encode(), "application/json")
        return document

    def _put(self, key: str, body: bytes, kind: str) -> None:
        put = {"Bucket": self._bucket, "Key": key, "Body": body, "ContentType": kind}
        with trouble():
            try:
                self._client.put_object(**put)
            except self._client.exceptions.NoSuchBucket:
                self._client.create_bucket(Bucket=self._bucket)
                self._client.put_object(**put)

    def _fetch(self, command: Command) -> Image.Image:
        """The image that `store` has put away."""
        stored = json.loads(command.inputs["store"].body)
        with trouble():
            found = self._client.get_object(Bucket=stored["bucket"], Key=stored["key"])
            return opened(found["Body"].read())


@contextmanager
def trouble() -> Iterator[None]:
    """Whatever is wrong with the storage is worth another attempt, and not a traceback."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise Fail("the storage cannot be used", str(error), 502) from None


def opened(data: bytes) -> Image.Image:
    """
    An image whose header is fine and small enough to be decoded.

    Raises:
        Fail: It is not.
    """
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        title = "the body is no image of a kind that is taken"
        raise Fail(title, ", ".join(FORMATS), 422, retry=False) from None
    if image.width * image.height > MAX_PIXELS:
        title, detail = "the image is too large", f"at most {MAX_PIXELS} pixels"
        raise Fail(title, detail, 422, retry=False)
    return image


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="A jobgate worker of the ingest pipeline.")
    parser.add_argument("role", choices=("store", "colours", "facts", "join"))
    parser.add_argument("--bucket", default="images", help="where everything goes")
    arguments = parser.parse_args()
    ingest = Ingest(boto3.client("s3"), arguments.bucket)
    handler: Callable[[Command], dict[str, Any]] = getattr(ingest, arguments.role)
    serve(handler)


if __name__ == "__main__":
    main()
