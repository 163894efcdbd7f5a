"""Pixels to a PNG file (W3C, "Portable Network Graphics", 8 bits per channel, no filter)."""

from __future__ import annotations

import struct
import zlib

_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # grey, grey + alpha, RGB, RGB + alpha


def encode_png(pixels: bytes, height: int, width: int, channels: int) -> bytes:
    """The file as bytes.

    Args:
        pixels: row by row, ``channels`` bytes per pixel.
        height, width: of the picture; channels: 1 to 4.

    Raises:
        ValueError: for other numbers of channels.
    """
    if channels not in _COLOR_TYPE:
        raise ValueError(f"a picture has 1 to 4 channels, got {channels}")
    row = width * channels
    lines = b"".join(b"\0" + pixels[i * row : (i + 1) * row] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPE[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
