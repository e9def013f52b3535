"""Compressed codes: nothing is lost, one byte more at most, and no frame makes a reader allocate more than was asked for."""

from __future__ import annotations

import contextlib
import resource
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zstandard
from codec_packets import body, drawn, forged, heard, layout_of, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from osmotic.codecs import BadPacket, Codec, entropy, make
from osmotic.codecs.sparse import Sparse, _form
from osmotic.flat import Flat

names = pytest.mark.parametrize("name", ["int8", "int4", "int2"])


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def pair(name: str) -> tuple[Codec, Codec]:
    """The codec plain, and with its codes compressed."""
    return make(name), make(name, options={name: {"entropy": True}})


def frame(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**{"level": 3, "write_content_size": False, **options}).compress(data)  # type: ignore[arg-type]


# --- nothing is lost ---


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300) | st.builds(lambda b, n: b * n, st.binary(max_size=3), st.integers(0, 2000)))
def test_any_bytes_come_back_and_are_one_more_at_most(data: bytes) -> None:
    packed = entropy.compress(data)
    assert len(packed) <= len(data) + 1
    assert entropy.decompress(memoryview(packed), len(data)) == data
    for most in (len(data), len(data) + 1, 10 * len(data) + 5):
        assert entropy.decompress_most(memoryview(packed), most) == data
    for other in (len(data) - 1, len(data) + 1):
        with pytest.raises(BadPacket):
            entropy.decompress(memoryview(packed), other)


def test_stored_and_compressed_by_hand() -> None:
    # What zstd makes longer is stored after a zero byte.
    assert entropy.compress(b"") == b"\0"
    assert entropy.compress(b"abc") == b"\0abc"
    packed = entropy.compress(b"a" * 1000)
    # RFC 8878: magic; a frame header with no size of its content, and no checksum.
    assert packed[:5] == b"\1\x28\xb5\x2f\xfd" and packed[5] == 0 and len(packed) < 30


@names
@settings(deadline=None, max_examples=40)
@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
        elements=st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, 2.0**-149, 2.0**119])),
    )
)
def test_numbers_arrive_as_the_plain_codec_sends_them_bit_for_bit(name: str, tensor: np.ndarray) -> None:
    plain, packed = pair(name)
    sent = {"w": tensor, "i": np.arange(3)}
    data = packed.encode(sent, {})
    assert len(data) <= len(plain.encode(sent, {})) + 1 == packed.packet_bytes(specs(sent))
    assert (
        heard(packed, data, sent)["w"].tobytes() == heard(plain, plain.encode(sent, {}), sent)["w"].tobytes()
    )


@names
def test_the_codes_of_a_network_are_fewer_bytes_and_the_same_numbers(name: str) -> None:
    layout = layout_of("unet-8")
    flat, (plain, packed) = Flat(layout, drawn(layout)), pair(name)
    data, other = packed.encode(flat, {}), plain.encode(flat, {})
    got, expected = packed.read(data, {}, None, layout), plain.read(other, {}, None, layout)
    assert got.buffer.tobytes() == expected.buffer.tobytes()  # type: ignore[attr-defined]
    # Codes of normal numbers are far from equally likely in 8 and 4 bits; those of four levels almost are.
    assert len(data) < len(other) * {"int8": 0.95, "int4": 0.95, "int2": 1.0}[name]


@names
def test_random_codes_that_cannot_be_compressed_cost_one_byte(name: str) -> None:
    plain, packed = pair(name)
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 300)).astype(np.float32)
    rest = body(packed, noise)
    if rest[:1] == entropy.STORED:
        assert rest[1:] == body(plain, noise)
    assert len(rest) <= len(body(plain, noise)) + 1


# --- frames that nobody of ours could have written ---


def rle_bomb(size: int) -> bytes:
    """A frame of RFC 8878 that says `size` zeros in 4 bytes for every 128 KiB: blocks of one byte that repeats."""
    block = 128 * 1024
    count = size // block
    # Magic; descriptor 0: no size of the content; window of 2^(10 + 13) = 8 MiB. Block: last? | type 1 | size, 24 bits.
    blocks = [
        ((block << 3) | (1 << 1) | (k == count - 1)).to_bytes(3, "little") + b"\0" for k in range(count)
    ]
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([13 << 3]) + b"".join(blocks)


def test_the_bomb_would_go_off_elsewhere() -> None:
    small = rle_bomb(2**20)
    assert zstandard.ZstdDecompressor().decompress(small, max_output_size=2**21) == bytes(2**20)
    assert len(rle_bomb(2**30)) == 6 + 4 * 8192


def bounded(read: Callable[[], object], most: int) -> None:
    """It is refused as bad, allocates little and takes no time: 1 GiB would need 0.1 s at the fastest, and its memory."""
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(BadPacket):
            read()
        took, peak = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak} bytes"
    assert took < 1
    # Also what the C library takes for itself: its window is 8 MiB. In KiB; it never sinks.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss < 64 * 1024


@names
@pytest.mark.parametrize("how", ["no size", "true size", "small size"])
def test_a_packet_that_would_become_a_gigabyte_is_refused_at_once(name: str, how: str) -> None:
    # 1 MiB of numbers: more than the 32 KiB of the bomb, so that its length alone does not give it away.
    codec, sent = pair(name)[1], {"w": np.zeros((1024, 1024), np.float32)}
    bomb = rle_bomb(2**30)
    if how != "no size":  # descriptor 0xc0: 8 bytes that say how much comes out, after the window
        size = 2**30 if how == "true size" else 100
        bomb = bomb[:4] + b"\xc0" + bomb[5:6] + size.to_bytes(8, "little") + bomb[6:]
    packet = forged(codec, sent, b"\1" + bomb)
    assert len(packet) < codec.packet_bytes(specs(sent))
    # The output of all that was asked for, 1 MiB of codes and 3 KiB of scales, and the packet itself.
    bounded(lambda: heard(codec, packet, sent), 4 * 2**20)


def test_gaps_that_would_become_a_gigabyte_are_refused_at_once() -> None:
    codec, sent = Sparse(density=0.1), {"w": np.zeros(2**20, np.float32)}
    form = _form(2**20, 4096, 0.1)
    start = bytes(2 + 4 + len(form.kept) + 2 * -(-form.count // 8))
    packet = forged(codec, sent, start + b"\1" + rle_bomb(2**30))
    assert form.low_bits == 0 and len(packet) < codec.packet_bytes(specs(sent))
    # 1 MiB of numbers as float32, and of 105,000 places some arrays of int64.
    bounded(lambda: heard(codec, packet, sent), 16 * 2**20)


DATA = b"abcabc" * 500


HOSTILE = {
    "nothing": b"",
    "a way that is none": b"\2" + DATA,
    "stored, too short": b"\0" + DATA[:-1],
    "stored, too long": b"\0" + DATA + b"\0",
    "no frame": b"\1",
    "a magic alone": b"\1\x28\xb5\x2f\xfd",
    "another magic": b"\1" + b"\x1f\x8b" + frame(DATA)[2:],
    "random": b"\1" + bytes(range(200)),
    "too little": b"\1" + frame(DATA[:-1]),
    "too much": b"\1" + frame(DATA + b"a"),
    "a frame behind": b"\1" + frame(DATA) + frame(b""),
    "bytes behind": b"\1" + frame(DATA) + b"\0",
    "a frame before": b"\1" + frame(b"") + frame(DATA),
    "a half and a half": b"\1" + frame(DATA[:1500]) + frame(DATA[1500:]),
    "a frame to be skipped": b"\1" + bytes.fromhex("502a4d18 04000000 00000000"),
    "a frame to be skipped before": b"\1" + bytes.fromhex("502a4d18 04000000 00000000") + frame(DATA),
    "torn": b"\1" + frame(DATA)[:-1],
    "its size claimed": b"\1" + frame(DATA, write_content_size=True),
    "no size claimed, of nothing": b"\1" + frame(b"", write_content_size=True),
    "with a dictionary": b"\1\x28\xb5\x2f\xfd\x01\x48\x07" + frame(DATA)[6:],
    "a window of 16 MiB": b"\1\x28\xb5\x2f\xfd\x00" + bytes([14 << 3]) + frame(DATA)[6:],
    "a window of a gigabyte": b"\1\x28\xb5\x2f\xfd\x00" + bytes([20 << 3]) + frame(DATA)[6:],
}


def test_the_data_of_the_tests_below_is_good() -> None:
    assert entropy.decompress(memoryview(b"\1" + frame(DATA)), 3000) == DATA
    assert entropy.decompress(memoryview(b"\0" + DATA), 3000) == DATA
    # A window of 8 MiB may be asked for, the same frame with one of a gigabyte not.
    assert (
        entropy.decompress(memoryview(b"\1\x28\xb5\x2f\xfd\x00" + bytes([13 << 3]) + frame(DATA)[6:]), 3000)
        == DATA
    )


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_codes_are_bad(case: str) -> None:
    with pytest.raises(BadPacket):
        entropy.decompress(memoryview(HOSTILE[case]), 3000)


BEHIND = [
    "a frame behind",
    "bytes behind",
    "a frame to be skipped before",
    "torn",
    "its size claimed",
    "random",
    "nothing",
]


@pytest.mark.parametrize("case", BEHIND)
@pytest.mark.parametrize("most", [3000, 3001, 10**6])
def test_hostile_codes_are_bad_also_where_fewer_may_come(case: str, most: int) -> None:
    """zstandard tells of bytes behind a frame only where the output is full."""
    with pytest.raises(BadPacket):
        entropy.decompress_most(memoryview(HOSTILE[case]), most)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_altered_frame_is_bad_or_so_many_bytes(data: st.DataObject) -> None:
    packed = bytearray(b"\1" + frame(DATA))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadPacket):
        assert len(entropy.decompress(memoryview(bytes(packed)), 3000)) == 3000


@names
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_plain_body_is_bad_or_read_compressed_as_it_is_plain(name: str, data: st.DataObject) -> None:
    """Codes are checked after they are decompressed as they are without."""
    plain, packed = pair(name)
    sent = {"b": np.ones(3, np.float32), "w": np.ones((2, 8), np.float32)}
    rest = bytearray(plain.encode(sent, {})[19:])
    for _ in range(data.draw(st.integers(1, 3))):
        rest[data.draw(st.integers(0, len(rest) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    found = []
    for codec, written in ((plain, bytes(rest)), (packed, b"\0" + bytes(rest))):
        try:
            found.append(
                {n: t.tobytes() for n, t in heard(codec, forged(codec, sent, written), sent).items()}
            )
        except BadPacket as bad:
            found.append(str(bad))  # type: ignore[arg-type]
    assert found[0] == found[1]
