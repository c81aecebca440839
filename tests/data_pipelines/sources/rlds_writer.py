"""Writes datasets as TFDS does: nested features flattened to paths, one tf.train.Example an episode, framed records."""

import io
import json
import struct

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.sources.record_files import masked_crc32c


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def example(values):
    """{path: list of bytes, or array} -> serialised Example."""
    message = tf_example_pb2.Example()
    for key, value in values.items():
        feature = message.features.feature[key]
        if isinstance(value, list):
            feature.bytes_list.value.extend(value)
        elif np.asarray(value).dtype.kind in "iub":
            feature.int64_list.value.extend(np.asarray(value).ravel().tolist())
        else:
            feature.float_list.value.extend(np.asarray(value, np.float32).ravel().tolist())
    return message.SerializeToString()


def framed(record):
    length = struct.pack("<Q", len(record))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, record)]
    return length + checks[0] + record + checks[1]


def features_json(values):
    """The description of `values`, as TFDS nests it; sizes are those of a step."""
    root = {"featuresDict": {"features": {}}}
    for key, value in values.items():
        *folders, name = key.split("/")
        node = root
        for depth, folder in enumerate(folders):
            child = {"featuresDict": {"features": {}}}
            if depth == 0 and folder == "steps":
                child = {
                    "pythonClassName": "...dataset_feature.Dataset",
                    "sequence": {"feature": child, "length": "-1"},
                }
            node = node["featuresDict"]["features"].setdefault(folder, child)
            node = node.get("sequence", {}).get("feature", node)
        if isinstance(value, list):
            image = value[:1] and value[0][:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
            leaf = {"image": {"dtype": "uint8", "encodingFormat": "png"}} if image else {"text": {}}
        else:
            value = np.asarray(value)
            shape = {"dimensions": [str(size) for size in value.shape[1:]]} if value.ndim > 1 else {}
            leaf = {"tensor": {"shape": shape, "dtype": str(value.dtype), "encoding": "none"}}
        node["featuresDict"]["features"][name] = leaf
    return root


def write_tfds(directory, name, shards, *, described, split="train", kind="tfrecord", lengths=None):
    """`shards` are lists of serialised episodes; `described` the values of one that has all features."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, records in enumerate(shards):
        path = directory / f"{name}-{split}.{kind}-{number:05}-of-{len(shards):05}"
        if kind == "tfrecord":
            path.write_bytes(b"".join(map(framed, records)))
        else:
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
    lengths = [len(records) for records in shards] if lengths is None else lengths
    info = {
        "fileFormat": kind,
        "name": name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "shardLengths": [str(length) for length in lengths],
            }
        ],
        "version": "1.0.0",
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "features.json").write_text(json.dumps(features_json(described)))
    return directory
