"""What a compressed frame says of its own size, read before a decoder allocates memory for it."""

import struct

_JPEG_START = b"\xff\xd8"
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\x00\x00\x00\x0cjP  "
# Start-of-frame markers of JPEG (ITU-T T.81 table B.1) and JPEG-LS (T.87); C4, C8 and CC are other segments.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


def declared_size(stream: bytes) -> tuple[int, int] | None:
    """(height, width) in a JPEG, JPEG-LS or JPEG 2000 code stream; None where it does not say."""
    if stream.startswith(_JP2_START):
        stream = stream[max(stream.find(_J2K_START), 0) :]
    if stream.startswith(_J2K_START):
        return _j2k_size(stream)
    if stream.startswith(_JPEG_START):
        return _jpeg_size(stream)
    return None


def _j2k_size(stream: bytes) -> tuple[int, int] | None:
    """SIZ segment (ITU-T T.800 A.5.1): grid size less the image's offset on it."""
    if len(stream) < 24:
        return None
    width, height, left, top = struct.unpack(">4L", stream[8:24])
    return height - top, width - left


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    position = 2
    while position + 9 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _FRAME_MARKERS:
            height, width = struct.unpack(">2H", stream[position + 5 : position + 9])
            return height, width
        position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    return None
