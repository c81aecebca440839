"""The cache of embeddings: exact, keyed by text and encoder, robust against damage and against other processes."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from wam.encoders.embedding_cache import EmbeddingCache

TOKENS = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)


def test_entries_are_exact_and_belong_to_text_and_encoder(tmp_path):
    cache = EmbeddingCache(tmp_path, "weights a")
    assert cache.read("open") is None
    cache.write("open", TOKENS)
    np.testing.assert_array_equal(cache.read("open"), TOKENS)
    assert cache.read("close") is None
    assert EmbeddingCache(tmp_path, "weights b").read("open") is None
    assert [file.suffix for file in cache.directory.iterdir()] == [".npz"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other text", "rubbish"])
def test_a_damaged_entry_counts_as_absent_and_is_said(tmp_path, caplog, damage):
    cache = EmbeddingCache(tmp_path, "weights")
    cache.write("open", TOKENS)
    path = cache.path("open")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[data.find(TOKENS.tobytes()) + 7] ^= 1
    elif damage == "cut":
        data = data[:-30]
    elif damage == "empty":
        data = bytearray()
    elif damage == "rubbish":
        data = bytearray(b"rubbish" * 50)
    else:
        cache.write("close", TOKENS)
        data = bytearray(cache.path("close").read_bytes())
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert cache.read("open") is None
    assert "is damaged" in caplog.text and str(path) in caplog.text
    cache.write("open", TOKENS)
    np.testing.assert_array_equal(cache.read("open"), TOKENS)


def test_processes_that_write_at_once_leave_whole_entries(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from wam.encoders.embedding_cache import EmbeddingCache\n"
        "cache = EmbeddingCache(sys.argv[1], 'weights')\n"
        "for i in range(40):\n"
        "    cache.write(f'text {i % 4}', np.full((50, 60), i % 4, np.float32))\n"
        "    found = cache.read(f'text {i % 3}')\n"
        "    assert found is None or (found == i % 3).all()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        assert process.wait() == 0 and not process.stderr.read()
    cache = EmbeddingCache(tmp_path, "weights")
    assert len(list(cache.directory.iterdir())) == 4
    assert all((cache.read(f"text {i}") == i).all() for i in range(4))


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write the embedding cache .*file"):
        EmbeddingCache(tmp_path / "file", "weights").write("open", TOKENS)
