"""A decoder for pydicom: JPEG of 12 bits and lossless JPEG, by libjpeg-turbo in imagecodecs.

Of the other packages that read these, one is under the GPL and one ends the process on damaged
files. The names are those that pydicom looks for in a plugin.
"""

from __future__ import annotations

import imagecodecs
from pydicom.pixels.decoders.base import (
    DecodeRunner,
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)

NAME = "imagecodecs"
DECODER_DEPENDENCIES = {
    decoder.UID: ("imagecodecs",)
    for decoder in (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder)
}


def is_available(uid: str) -> bool:
    return uid in DECODER_DEPENDENCIES and imagecodecs.JPEG8.available


def _decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """A frame's values, colour by pixel, in the byte order that pydicom expects of plugins."""
    pixels = imagecodecs.jpeg8_decode(src)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    if pixels.ndim == 3:
        runner.set_option("planar_configuration", 0)
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()


for _decoder in (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
    _decoder.add_plugin(NAME, ("segapp.formats.jpeg", "_decode_frame"))
