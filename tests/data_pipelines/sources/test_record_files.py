"""Checksums, and the wire format of tf.train.Example, against known values and the protocol buffer library."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.sources.record_files import masked_crc32c
from data_pipelines.sources.tf_example import read_example


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # these three: RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_the_standard(data, crc):
    assert masked_crc32c(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000, (1 << 17) - 4, (1 << 17) - 3, 300_001])
def test_folding_agrees_with_byte_by_byte(size):
    data = np.random.default_rng(size).bytes(size)
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    assert masked_crc32c(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_an_example_is_read_as_the_library_reads_it():
    message = tf_example_pb2.Example()
    ints = [0, 1, -1, 127, 128, 300, 2**63 - 1, -(2**63), 5]
    floats = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    message.features.feature["i"].int64_list.value.extend(ints)
    message.features.feature["f"].float_list.value.extend(floats.tolist())
    message.features.feature["b"].bytes_list.value.extend([b"", b"x" * 1000, b"yz"])
    message.features.feature["none"].int64_list.value.extend([])
    message.features.feature["nothing"].SetInParent()
    features = read_example(memoryview(message.SerializeToString()))
    assert sorted(features) == ["b", "f", "i", "none", "nothing"]
    assert features["i"].numbers().tolist() == ints
    assert np.array_equal(features["f"].numbers(), floats)
    assert [bytes(x) for x in features["b"].byte_strings()] == [b"", b"x" * 1000, b"yz"]
    assert not len(features["none"].numbers()) and not len(features["nothing"].byte_strings())
    with pytest.raises(ValueError, match="holds float, not bytes"):
        features["f"].byte_strings()


def test_numbers_that_are_not_packed_are_read_too():
    # value: 1.5 as fixed32 fields of their own, and 7, 300 as varint fields of their own
    floats = b"\x0d\x00\x00\xc0\x3f" * 2
    ints = b"\x08\x07\x08\xac\x02"
    entries = []
    for name, number, values in ((b"f", 2, floats), (b"i", 3, ints)):
        feature = bytes([number << 3 | 2, len(values)]) + values
        entry = b"\x0a\x01" + name + b"\x12" + bytes([len(feature)]) + feature
        entries.append(b"\x0a" + bytes([len(entry)]) + entry)
    data = b"\x0a" + bytes([len(b"".join(entries))]) + b"".join(entries)
    assert set(tf_example_pb2.Example.FromString(data).features.feature) == {"f", "i"}
    features = read_example(memoryview(data))
    assert features["f"].numbers().tolist() == [1.5, 1.5]
    assert features["i"].numbers().tolist() == [7, 300]


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0f", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x80"])
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match=r"is not a tf\.train\.Example"):
        read_example(memoryview(data))
