"""What a sound file says about its own length, beyond what FFmpeg makes of it.

FFmpeg reads leniently: it guesses durations that nobody wrote, and takes the end of a file for the
end of its sound. An archive wants to know of an upload that was cut off.
"""

import os
import struct
from enum import Enum, auto
from typing import Protocol

OGG_LAST_PAGE = 0x04  # bit of the page header's type field
ID3_HEADER_BYTES = 10
MP3_TAG_BYTES = 64  # of the first frame, in which that tag begins
MP3_FIRST_FRAME_BYTES = 4096  # the Xing/Info/VBRI tag is in the first frame
OGG_PAGE_HEADER_BYTES = 27
RIFF_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # written by programs that stream


class Readable(Protocol):
    """A file as far as it is looked into here."""

    def seek(self, offset: int, /) -> int:
        """Go on at a byte."""

    def read(self, most: int, /) -> bytes:
        """Return the next bytes."""


class OpenFile:
    """A file by its descriptor, looked into without moving where FFmpeg goes on to read it."""

    def __init__(self, descriptor: int) -> None:
        """Begin at its first byte."""
        self._descriptor = descriptor
        self._at = 0

    @property
    def size(self) -> int:
        """Bytes of it, as it is now."""
        return os.fstat(self._descriptor).st_size

    def seek(self, offset: int, /) -> int:
        """Go on at a byte."""
        self._at = offset
        return offset

    def read(self, most: int, /) -> bytes:
        """Return the next bytes; fewer at the end only."""
        found = os.pread(self._descriptor, most, self._at)
        self._at += len(found)
        return found


class Length(Enum):
    """Where the duration that FFmpeg reports comes from."""

    STATED = auto()  # the encoder wrote it: less that can be decoded is a loss
    MEASURED = auto()  # derived from the bytes that are there
    GUESSED = auto()  # from the bit rate of the first frames; tags between frames are common
    UNKNOWN = auto()  # guessed, and every packet should decode


LENGTHS = {"aac": Length.UNKNOWN, "asf": Length.UNKNOWN, "wav": Length.MEASURED}


def length_of(file: Readable, container_format: str) -> Length:
    """Return what the duration of a file of FFmpeg's ``container_format`` is worth."""
    if container_format == "mp3":
        return Length.STATED if _has_mp3_length(file) else Length.GUESSED
    return LENGTHS.get(container_format, Length.STATED)


def _has_mp3_length(file: Readable) -> bool:
    first = _after_id3(file, MP3_FIRST_FRAME_BYTES)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def is_constant_mp3(file: Readable) -> bool:
    """Whether a file is MP3 and says that its bytes are spread evenly over its time."""
    first = _after_id3(file, MP3_TAG_BYTES)
    return first[:1] == b"\xff" and b"Info" in first


def _after_id3(file: Readable, count: int) -> bytes:
    file.seek(0)
    head = file.read(ID3_HEADER_BYTES)
    is_tag = head[:3] == b"ID3" and len(head) == ID3_HEADER_BYTES
    shifts = zip(head[6:], (21, 14, 7, 0), strict=True) if is_tag else ()
    file.seek(ID3_HEADER_BYTES + sum(byte << shift for byte, shift in shifts) if is_tag else 0)
    return file.read(count)


def ends_early(file: OpenFile, container_format: str) -> bool:
    """Whether a format that FFmpeg reads leniently says that more should follow."""
    if container_format == "wav":
        return _riff_ends_early(file)
    return container_format == "ogg" and not _has_last_ogg_page(file)


def _riff_ends_early(file: OpenFile) -> bool:
    file.seek(0)
    head = file.read(8)
    if head[:4] != b"RIFF":
        return False
    size: int = struct.unpack("<I", head[4:])[0]
    return size not in RIFF_UNKNOWN_SIZES and size + len(head) > file.size + 1


def _has_last_ogg_page(file: OpenFile) -> bool:
    largest_page = OGG_PAGE_HEADER_BYTES + 255 + 255 * 255
    file.seek(max(0, file.size - 2 * largest_page))
    tail = file.read(2 * largest_page)
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    if len(page) < OGG_PAGE_HEADER_BYTES or not page[5] & OGG_LAST_PAGE:
        return False
    segments = page[26]  # as many bytes follow the header, each the length of one segment
    body = OGG_PAGE_HEADER_BYTES + segments
    return len(page) >= body + sum(page[OGG_PAGE_HEADER_BYTES:body])
