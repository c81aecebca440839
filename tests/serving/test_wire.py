"""Messages: the bytes of openpi-client, and what a hostile one may not do."""

import struct
import tracemalloc

import msgpack
import numpy as np
import pytest

from wam.serving.wire import Limits, WireError, pack, unpack

VALUE = {"a": np.arange(3, dtype=np.float32), "g": np.float32(0.5), "n": {"u": np.zeros((1, 2), np.uint8)}, "p": "go",
         "l": [1, 2.5, True]}  # fmt: skip
# Written by version 0.1.2 of openpi-client with numpy 1.26.
THEIRS = bytes.fromhex(
    "85a16184c40b5f5f6e6461727261795f5fc3c40464617461c40c000000000000803f00000040c4056474797065a33c6634c4"
    "0573686170659103a16783c40d5f5f6e7067656e657269635f5fc3c40464617461cb3fe0000000000000c4056474797065a3"
    "3c6634a16e81a17584c40b5f5f6e6461727261795f5fc3c40464617461c4020000c4056474797065a37c7531c40573686170"
    "65920102a170a2676fa16c9301cb4004000000000000c3"
)


def test_bytes_are_those_of_openpi_client():
    assert pack(VALUE) == THEIRS
    back = unpack(THEIRS)
    np.testing.assert_array_equal(back["a"], VALUE["a"])
    assert back["a"].dtype == np.float32 and back["n"]["u"].shape == (1, 2)
    assert back["g"] == np.float32(0.5) and isinstance(back["g"], np.float32)
    assert back["p"] == "go" and back["l"] == [1, 2.5, True]
    for array in (np.array(2.0), np.zeros((0, 3), np.int16), np.array([True]), np.ones((2, 3, 4), ">f8")):
        again = unpack(pack(array))
        np.testing.assert_array_equal(again, array)
        assert again.dtype == array.dtype and again.shape == array.shape and not again.flags.writeable


def array(data=b"\0" * 12, dtype="<f4", shape=(3,), **more):
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape)} | more)


NESTED = b"\x91" * 500 + b"\xc0"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "not one msgpack value"),
        (b"\xc1", "not one msgpack value"),
        (THEIRS[:-3], "not one msgpack value"),
        (THEIRS + b"\0", "not one msgpack value"),
        (b"\xa2\xff\xff", "not one msgpack value"),
        (NESTED, "nested more than 6 deep"),
        (b"\x91" * 100_000, "not one msgpack value"),
        (b"\xdd\xff\xff\xff\xff", "not one msgpack value"),
        (b"\xdf\x00\x10\x00\x00", "not one msgpack value"),
        (b"\xdc\x40\x00" + b"\x80" * 16_384, "not one msgpack value"),
        (msgpack.packb([[{}] * 2000] * 3), "more than 4000 entries"),
        (msgpack.packb({"x": "y" * 5000}), "not one msgpack value"),
        (b"\x82\xa1a\x01\xa1a\x02", "a key twice"),
        (msgpack.packb({"a": {b"b": 1}}), "keys of a map are strings"),
        (msgpack.packb({"a": b"raw"}), "has the type bytes"),
        (msgpack.packb({1: 2}), "not one msgpack value"),
        (msgpack.packb(msgpack.ExtType(4, b"x")), "extension of type 4"),
        (msgpack.packb(msgpack.Timestamp(1)), "has the type Timestamp"),
        (array(dtype="|O"), "got '|O'"),
        (array(dtype="O8"), "got 'O8'"),
        (array(dtype="i4,i4"), "got 'i4,i4'"),
        (array(dtype="<U3"), "got '<U3'"),
        (array(dtype="<c8"), "got '<c8'"),
        (array(dtype="<f16"), "got '<f16'"),
        (array(dtype=["<f4"]), "is a boolean, integer or float"),
        (array(shape=(4,)), "declares 4 values of float32, its data have 12 bytes"),
        (array(shape=(2**40, 2**40)), "its data have 12 bytes"),
        (array(b"", shape=(2**60, 0)), "its data have 0 bytes"),
        (array(shape=(-3,)), "sizes, none negative"),
        (array(shape=(1,) * 7), "at most 6 sizes"),
        (array(shape=(3.0,)), "sizes, none negative"),
        (array(data="text"), "are bytes"),
        (msgpack.packb({b"__ndarray__": True}), "an array needs"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "does not fit"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "|u1"}), "a numpy scalar needs"),
    ],
)
def test_what_is_no_message_is_refused_in_one_sentence(message, said):
    with pytest.raises(WireError) as refused:
        unpack(message)
    assert said in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_any_bytes_are_refused_or_read_and_nothing_else_happens():
    rng = np.random.default_rng(0)
    good = pack({**VALUE, "image": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)})
    read = 0
    for _ in range(3000):
        message = bytearray(good)
        for place in rng.integers(0, len(good), rng.integers(1, 5)):
            message[place] = rng.integers(256)
        try:
            unpack(bytes(message[: rng.integers(1, len(good) + 1)] if rng.random() < 0.3 else message))
            read += 1
        except WireError:
            pass
    assert 0 < read < 3000


def test_a_small_message_cannot_become_a_large_object():
    """The worst that 40 kB can ask for: declared lengths within the limit, at every depth that the parser allows."""
    limit = Limits().items
    bomb = (b"\xdc" + struct.pack(">H", limit)) * 13_000
    tracemalloc.start()
    with pytest.raises(WireError):
        unpack(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


def test_what_cannot_be_sent_is_refused():
    for value in (np.array(["a"]), np.array([1j]), np.array([object()]), object(), {"a": {1, 2}}):
        with pytest.raises(TypeError, match="cannot be sent"):
            pack(value)
