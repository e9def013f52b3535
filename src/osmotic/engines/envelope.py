"""Packets as the records of Flower's messages: the header as one JSON string, each blob as one array of bytes.

Blobs are arrays and no `bytes` of a ConfigRecord: only arrays are cut into chunks, and stored once where they are equal.
"""

from __future__ import annotations

import json
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from osmotic.engines.shared import native_number
from osmotic.protocol.messages import Packet

BYTES = "osmotic.bytes"  # how an array's bytes are to be read: as they are
HEADER, BLOBS = "osmotic", "blobs"  # names of the records
MAX_HEADER = 2**22  # characters; the largest of ours name the class of each image that a client is to draw
MAX_BLOBS = 2**16  # a client that was away is sent a packet for every round that it missed


class NoPacket(ValueError):
    """Records that hold no packet: one line that says why."""


def records(packet: Packet, **beside: str) -> RecordDict:
    """A packet as records; `beside` are further texts of the transport's own, which `packet_of` leaves out."""
    header = json.dumps(dict(packet.header), default=native_number)
    blobs = {str(place): _array(blob) for place, blob in enumerate(packet.blobs)}
    return RecordDict(
        {HEADER: ConfigRecord({"header": header, **beside}), BLOBS: ArrayRecord(array_dict=blobs)}
    )


def packet_of(content: RecordDict) -> Packet:
    """The packet in records from outside.

    Raises: NoPacket for anything that `records` would not have made.
    """
    told, arrays = content.get(HEADER), content.get(BLOBS)
    if not isinstance(told, ConfigRecord) or not isinstance(arrays, ArrayRecord) or len(content) != 2:
        raise NoPacket("holds other records than a packet's")
    text = told.get("header")
    if not isinstance(text, str) or len(text) > MAX_HEADER:
        raise NoPacket(f"has no header of at most {MAX_HEADER:,} characters")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoPacket(f"has a header that is no JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise NoPacket("has a header that is no JSON object")
    if len(arrays) > MAX_BLOBS or set(arrays) != {str(place) for place in range(len(arrays))}:
        raise NoPacket("has blobs of other names than 0, 1, ...")
    return Packet(header, tuple(_blob(arrays[str(place)]) for place in range(len(arrays))))


def beside(content: RecordDict, name: str) -> str:
    """A text of the transport's own beside a packet; "" where there is none."""
    told = content.get(HEADER)
    found = told.get(name, "") if isinstance(told, ConfigRecord) else ""
    return found if isinstance(found, str) else ""


def _array(blob: Any) -> Array:
    data = bytes(blob)
    return Array(dtype="uint8", shape=(len(data),), stype=BYTES, data=data)


def _blob(array: Array) -> bytes:
    if array.stype != BYTES or not isinstance(array.data, bytes):
        raise NoPacket("has a blob that is no row of bytes")
    return array.data
