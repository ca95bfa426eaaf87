"""The bytes of one shard: what goes in comes out, equal voxels are equal bytes, and damage is seen."""

import struct

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.errors import Malformed
from em_assets.standardize.shard import ShardFormat, ShardReader, decode_shard, encode_shard
from em_assets.volume import Box

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"]
FORM = ShardFormat((32, 32, 64), (16, 16, 16), "uint8")


def voxels(shape, dtype="uint8", seed=0):
    bits = np.random.default_rng(seed).integers(0, 256, (*shape[:2], shape[2] * np.dtype(dtype).itemsize), np.uint8)
    return np.nan_to_num(bits.view(f"<{np.dtype(dtype).str[1:]}"))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), codec=st.sampled_from(["zstd", "none"]))
def test_what_goes_in_comes_out(data, dtype, codec):
    """Any voxels up to the shard's shape, any dtype and set of absent chunks: decoded as given, 0 where absent."""
    chunk = tuple(data.draw(st.tuples(*[st.integers(1, 9)] * 3)))
    grid = tuple(data.draw(st.tuples(*[st.integers(1, 4)] * 3)))
    shard = tuple(c * g for c, g in zip(chunk, grid, strict=True))
    shape = tuple(data.draw(st.integers(1, n)) for n in shard)
    form = ShardFormat(shard, chunk, dtype, codec)
    given_voxels = voxels(shape, dtype)
    cells = list(Box.from_shape(shape).cells(chunk))
    absent = data.draw(st.sets(st.sampled_from(cells)))
    expected = given_voxels.copy()
    for at in absent:
        expected[form.chunk_box(at, shape).slices] = 0

    encoded = encode_shard(given_voxels, form, absent)

    np.testing.assert_array_equal(decode_shard(encoded, form, shape, "a shard"), expected)
    reader = ShardReader.of_bytes(encoded, form, "a shard")
    there = {at for at in Box.from_shape(shard).cells(chunk) if reader.chunk(at) is not None}
    assert there == set(cells) - absent


def test_equal_voxels_are_equal_bytes():
    """Neither the memory layout nor the byte order of the array nor a second run shows in the bytes."""
    form = ShardFormat((32, 32, 32), (16, 16, 16), "uint16")
    array = voxels((32, 30, 20), "uint16")
    encoded = encode_shard(array, form)
    for other in (array.copy(), np.asfortranarray(array), array.astype(">u2"), array[::-1].copy()[::-1]):
        assert encode_shard(other, form) == encoded


def test_black_is_stored_and_absence_is_not():
    """A chunk of zeros has bytes; an absent one and one beyond the voxels have 2^64 - 1 in the index."""
    encoded = encode_shard(np.zeros((32, 32, 20), np.uint8), FORM, {(1, 1, 0)})
    index = np.frombuffer(encoded[-FORM.index_bytes : -4], "<u8").reshape(2, 2, 4, 2)
    absent = (index == 2**64 - 1).all(axis=-1)
    assert absent[1, 1, 0]
    assert absent[:, :, 2:].all()
    assert absent.sum() == 1 + 8


def test_chunks_lie_in_order_without_gaps():
    """C order, back to back, the index behind them with its checksum: the layout is the specification's."""
    encoded = encode_shard(voxels((32, 32, 64)), FORM)
    index = np.frombuffer(encoded[-FORM.index_bytes : -4], "<u8").reshape(-1, 2).astype(int)
    ends = index.sum(axis=1)
    assert list(index[:, 0]) == [0, *ends[:-1]]
    assert ends[-1] == len(encoded) - FORM.index_bytes
    assert struct.unpack("<I", encoded[-4:])[0] == google_crc32c.value(bytes(encoded[-FORM.index_bytes : -4]))


def test_voxels_larger_than_the_shard_are_refused():
    """They would be cut in silence."""
    with pytest.raises(ValueError, match="do not fit"):
        encode_shard(np.zeros((33, 1, 1), np.uint8), FORM)


def with_index(encoded, position, value):
    """The shard with one number of its index changed and a right checksum over it."""
    table = bytearray(encoded[-FORM.index_bytes : -4])
    struct.pack_into("<Q", table, 8 * position, value)
    return bytes(encoded[: -FORM.index_bytes]) + bytes(table) + struct.pack("<I", google_crc32c.value(bytes(table)))


def flipped(encoded, at):
    damaged = bytearray(encoded)
    damaged[at] ^= 0x40
    return bytes(damaged)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(lambda e: e[:-1], "checksum of its index", id="last byte cut"),
        pytest.param(lambda e: e[: len(e) // 2], "checksum of its index", id="cut in the middle"),
        pytest.param(lambda e: e[:100], "100 bytes", id="shorter than its index"),
        pytest.param(lambda e: b"", "0 bytes", id="empty"),
        pytest.param(lambda e: flipped(e, -1), "checksum of its index", id="checksum"),
        pytest.param(lambda e: flipped(e, -60), "checksum of its index", id="index"),
        pytest.param(lambda e: flipped(e, 0), "does not decompress", id="magic number of a chunk"),
        pytest.param(lambda e: with_index(e, 1, 2**63), "lies outside", id="length beyond the end"),
        pytest.param(lambda e: with_index(e, 0, 2**64 - 2), "lies outside", id="offset beyond the end"),
        pytest.param(lambda e: with_index(e, 1, 2**64 - 1), "lies outside", id="half absent"),
        pytest.param(lambda e: with_index(e, 1, 12), "decompress", id="chunk cut"),
        pytest.param(lambda e: with_index(e, 1, 0), "chunk", id="chunk empty"),
    ],
)
def test_damage_is_seen_and_named(damage, said):
    """A changed index, a cut and a broken chunk are errors that name the shard and say what is wrong."""
    encoded = bytes(encode_shard(voxels((32, 32, 64)), FORM))
    with pytest.raises(Malformed, match=said) as error:
        decode_shard(damage(encoded), FORM, (32, 32, 64), "volume/0/c/1/2/3")
    assert str(error.value).startswith("volume/0/c/1/2/3 ")


def test_a_chunk_that_states_another_size_is_refused_before_it_is_decoded():
    """A frame that would grow to something else than a chunk is not given the memory."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(2**26))
    table = np.full((2, 2, 4, 2), 2**64 - 1, "<u8")
    table[0, 0, 0] = 0, len(bomb)
    encoded = bomb + table.tobytes() + struct.pack("<I", google_crc32c.value(table.tobytes()))
    with pytest.raises(Malformed, match=r"states 67108864 bytes, expected 4096"):
        decode_shard(encoded, FORM, (32, 32, 64), "a shard")


def test_one_chunk_is_read_without_the_others():
    """Reading a chunk by ranges asks for the index and that chunk's bytes, nothing else."""
    array = voxels((32, 32, 64))
    encoded = bytes(encode_shard(array, FORM))
    asked = []

    def read(start, length):
        asked.append((start, length))
        return encoded[start : start + length]

    chunk = ShardReader(FORM, len(encoded), read, "a shard").chunk((1, 0, 2))
    np.testing.assert_array_equal(chunk, array[16:32, :16, 32:48])
    assert asked[0] == (len(encoded) - FORM.index_bytes, FORM.index_bytes)
    assert len(asked) == 2
    assert asked[1][1] < len(encoded) / 10
