"""Images in place of tensors, so that a person can try a model with curl.

An image becomes one row of the model's only input, if that is UINT8 of shape [height, width], [1, height, width],
[height, width, channels] or [channels, height, width] with 1 or 3 channels: converted to grey or RGB (transparency on
black), and resized to height x width by Lanczos, without regard to its aspect. Brightness stays as it is: a model
trained on light shapes before a dark ground, as Fashion-MNIST, wants such an image.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import BadRequest, UnsupportedMediaType

if TYPE_CHECKING:
    from services.gateway.model import Model, Tensor

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG"}
MAX_PIXELS = 16 * 2**20  # a small file can unfold to gigabytes


class Frame(NamedTuple):
    """The picture that an input takes; ``channels_first``: [channels, height, width]."""

    height: int
    width: int
    channels: int
    channels_first: bool


def frame_of(model: Model) -> Frame:
    """Return the frame of a model's input; UnsupportedMediaType if it takes no single image."""
    tensor = model.inputs[0]
    if len(model.inputs) == 1 and tensor.datatype == "UINT8" and (frame := _frame(tensor)) is not None:
        return frame
    inputs = ", ".join(f"{tensor.name} {tensor.datatype}{list(tensor.shape)}" for tensor in model.inputs)
    raise UnsupportedMediaType(f"model {model.name!r} takes no images: its inputs are {inputs}")


def _frame(tensor: Tensor) -> Frame | None:
    if len(tensor.shape) == 2:
        height, width = tensor.shape
        return Frame(height, width, 1, False)
    if len(tensor.shape) == 3:
        first, second, third = tensor.shape
        if first in (1, 3):
            return Frame(second, third, first, True)
        if third in (1, 3):
            return Frame(first, second, third, False)
    return None


def decode(body: bytes, content_type: str, frame: Frame) -> bytes:
    """Return the bytes of one row; BadRequest for what is no such image. Slow: call it in a thread."""
    kind = FORMATS[content_type]
    try:
        with Image.open(io.BytesIO(body), formats=[kind]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadRequest(f"image: {image.width} x {image.height} pixels exceed the limit of {MAX_PIXELS}")
            image.draft("RGB" if frame.channels == 3 else "L", (frame.width, frame.height))
            picture = _flat(image).convert("RGB" if frame.channels == 3 else "L")
    except BadRequest:
        raise
    except UnidentifiedImageError:
        raise BadRequest(f"image: the body is no {kind}") from None
    except Exception as error:  # Pillow's decoders raise what they like for a broken file: OSError, SyntaxError, ...
        raise BadRequest(f"image: the {kind} cannot be decoded: {error}") from None
    if picture.size != (frame.width, frame.height):
        picture = picture.resize((frame.width, frame.height), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    if frame.channels_first and frame.channels == 3:
        pixels = pixels.transpose(2, 0, 1)
    return pixels.tobytes()


def _flat(image: Image.Image) -> Image.Image:
    """Return the image as something that converts to grey and RGB without surprises."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel: convert() would clip instead of scale
        wide = np.asarray(image).astype(np.float32)
        return Image.fromarray((wide / 257).round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(ground, image)
    return image
