import collections
import dataclasses
import itertools
import json
import pickle
import threading

import numpy as np
import pytest

from data_pipelines.mixture import Mixture, eval_batches
from data_pipelines.stats import fit_statistics
from data_pipelines.transforms import ToSample
from data_pipelines.windows import Windows
from wam.batch import BatchSpec, check_batch

SPEC = BatchSpec(
    views=2,
    frames=3,
    height=8,
    width=8,
    chunks=1,
    action_horizon=16,
    action_dim=5,
    state_dim=6,
    text_tokens=2,
    text_dim=3,
)


def encode_text(instruction):
    return np.full((2, 3), len(instruction), np.float32), np.array([True, False])


@pytest.fixture
def sources(episode, write_store, config):
    free = [episode(f"v{i}", 20, stride=2, hz=20.0, free=True, cameras=("ego",)) for i in range(3)]
    expert = write_store([episode(f"e{i}", 100) for i in range(4)], "expert")
    play = write_store([episode(f"p{i}", 60, imitate=np.zeros(60)) for i in range(2)], "play")
    video = write_store(free, "video")
    return {name: Windows(store, config()) for name, store in (("expert", expert), ("play", play), ("video", video))}


@pytest.fixture
def to_sample(sources):
    statistics = fit_statistics(list(sources.values()))
    normalizers = {"sawyer_metaworld": statistics.normalizers("sawyer_metaworld")}
    return ToSample(SPEC, sources, normalizers, ("none", "sawyer_metaworld"), encode_text)


@pytest.fixture
def mixture(sources, to_sample):
    def make(weights=None, batch_size=8, seed=0, **options):
        weights = weights or {"expert": 2.0, "play": 1.0, "video": 1.0}
        return Mixture(sources, weights, to_sample, batch_size=batch_size, seed=seed, **options)

    return make


def take(mixture, count):
    with mixture.iterator() as iterator:
        return [next(iterator) for _ in range(count)]


def ids(batches):
    return [tuple(int(x) for x in row) for batch in batches for row in batch["sample_id"]]


def assert_equal(batches, others):
    for one, two in zip(batches, others, strict=True):
        for key, value in one.items():
            assert np.array_equal(value, two[key]), key


def test_samples_obey_the_spec(sources, to_sample):
    for source, (name, windows) in enumerate(sources.items()):
        for i in range(len(windows)):
            sample, window = to_sample(windows[i], source), windows[i]
            check_batch(sample, SPEC, None)
            assert sample["sample_id"].tolist() == [source, i] and sample["source"] == source
            assert not sample["action"][~sample["action_mask"]].any() and not sample["value_mask"].any()
            assert not sample["state"][~sample["state_mask"]].any()
            assert sample["text"][0, 0] == len("reach the goal")
            if name == "video":
                assert sample["embodiment"] == 0 and not sample["action_mask"].any() and not sample["state_mask"].any()
                assert not sample["imitate"].any()
                continue
            assert sample["embodiment"] == 1
            assert sample["imitate"].item() == (name == "expert")
            state_normalizer, action_normalizer = to_sample.normalizers["sawyer_metaworld"]
            real = window["action_mask"][0]
            restored = action_normalizer.denormalize(sample["action"][0, :, :4])
            assert np.allclose(restored[real], window["action"][0][real], atol=1e-5)
            assert np.allclose(state_normalizer.denormalize(sample["state"][:, :4]), window["state"], atol=1e-5)
            assert sample["action_mask"].sum() == 4 * real.sum() and sample["state_mask"].sum() == 4


def test_shares_are_exact(mixture):
    counts = collections.Counter(source for source, _ in ids(take(mixture(), 25)))
    assert counts == {0: 100, 1: 50, 2: 50}


def test_sources_without_weight_are_left_out(mixture):
    assert {source for source, _ in ids(take(mixture({"video": 1.0}), 4))} == {2}


def test_every_epoch_is_a_new_permutation(mixture, sources):
    count = len(sources["play"])
    order = mixture({"play": 1.0}).order
    first, second = ([order[i][1] for i in range(start, start + count)] for start in (0, count))
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second and first != sorted(first)
    other = mixture({"play": 1.0}, seed=1).order
    assert [other[i][1] for i in range(count)] != first


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_out_what_one_replica_consumes(mixture, replicas):
    """At every point the replicas together have consumed a prefix of each source's order, each item once."""
    alone = ids(take(mixture(), 12))
    for batches in (4, 12):
        together = [ids(take(mixture(replica=r, replicas=replicas), batches)) for r in range(replicas)]
        assert all(len(part) == batches * 8 // replicas for part in together)
        joined = list(itertools.chain(*together))
        assert sorted(joined) == sorted(alone[: batches * 8])


@pytest.mark.parametrize("replicas", [2, 4])
def test_an_epoch_over_all_replicas_is_complete_and_disjoint(mixture, sources, replicas):
    count = len(sources["expert"])
    assert count % replicas == 0
    parts = [mixture({"expert": 1.0}, replica=r, replicas=replicas).order for r in range(replicas)]
    seen = [part[i][1] for part in parts for i in range(count // replicas)]
    assert sorted(seen) == list(range(count))


def test_resume_equals_uninterrupted(mixture):
    whole = take(mixture(), 9)
    with mixture().iterator() as iterator:
        for _ in range(4):
            next(iterator)
        while iterator._queue.qsize() < 2:  # let it read ahead: the state must not
            threading.Event().wait(0.01)
        state = json.loads(json.dumps(iterator.state()))
    with mixture(threads=1, prefetch=1).iterator() as resumed:
        resumed.set_state(state)
        assert resumed.state() == state
        assert_equal([next(resumed) for _ in range(5)], whole[4:])
        resumed.set_state(mixture().state_after(2))  # back again, on the running iterator
        assert_equal([next(resumed) for _ in range(3)], whole[2:5])


def test_state_of_another_pipeline_is_refused(mixture, sources, to_sample):
    state = take_state(mixture())
    for other in (mixture(seed=1), mixture(batch_size=4), mixture({"expert": 1.0}), mixture(replicas=2)):
        with other.iterator() as iterator, pytest.raises(ValueError, match="belongs to another pipeline"):
            iterator.set_state(state)
    assert mixture(threads=1, prefetch=1).pipeline_hash == mixture().pipeline_hash
    assert mixture(replica=1, replicas=2).pipeline_hash == mixture(replicas=2).pipeline_hash


def take_state(mixture):
    with mixture.iterator() as iterator:
        next(iterator)
        return iterator.state()


def test_threads_end_and_errors_reach_the_consumer(mixture):
    before = threading.active_count()
    with mixture().iterator(place=fail) as failing, pytest.raises(OSError, match="disk is gone"):
        next(failing)
    with pytest.raises(ValueError, match="closed"):
        next(failing)
    with mixture().iterator() as iterator:
        next(iterator)
        assert iterator.wait_seconds > 0
    for _ in range(100):
        if threading.active_count() <= before:
            break
        threading.Event().wait(0.02)
    assert threading.active_count() <= before


def fail(batch):
    raise OSError("disk is gone")


@pytest.mark.parametrize(
    ("weights", "options", "problem"),
    [
        ({}, {}, "mixture is empty"),
        ({"expert": 0.0}, {}, "weights must be positive"),
        ({"expert": -1.0}, {}, "weights must be positive"),
        ({"expert": 1.0, "typo": 1.0}, {}, r"unknown sources \['typo'\]"),
        ({"expert": 1.0}, {"replicas": 3}, "cannot be split"),
    ],
)
def test_bad_mixtures_are_refused(sources, to_sample, weights, options, problem):
    with pytest.raises(ValueError, match=problem):
        Mixture(sources, weights, to_sample, batch_size=8, seed=0, **options)


def test_source_without_windows_is_refused(sources, episode, write_store, config, to_sample):
    still = write_store([episode("v", 20, stride=20, hz=20.0, free=True, cameras=("ego",))], "still")
    sources = {"still": Windows(still, config(frame_seconds=(0.0, 2.0, 4.0)))}
    with pytest.raises(ValueError, match=r"\['still'\] have no usable window"):
        Mixture(sources, {"still": 1.0}, to_sample, batch_size=8, seed=0)


@pytest.mark.parametrize(
    ("changes", "embodiments", "problem"),
    [
        ({"action_horizon": 8}, ("none", "sawyer_metaworld"), "'expert' has"),
        ({"state_dim": 3}, ("none", "sawyer_metaworld"), "the batch has room for 5 and 3"),
        ({}, ("sawyer_metaworld",), "must start with 'none'"),
        ({}, ("none",), "not in the embodiment table"),
    ],
)
def test_sources_that_do_not_fit_the_batch_are_refused(sources, to_sample, changes, embodiments, problem):
    with pytest.raises(ValueError, match=problem):
        ToSample(dataclasses.replace(SPEC, **changes), sources, to_sample.normalizers, embodiments, encode_text)
    with pytest.raises(ValueError, match="no normalisers"):
        ToSample(SPEC, sources, {}, ("none", "sawyer_metaworld"), encode_text)


def test_eval_batches_are_static_and_say_what_is_valid(sources, to_sample):
    batches = list(eval_batches(sources["expert"], to_sample, 0, 4, [5, 1, 2, 9, 7]))
    for batch, _ in batches:
        check_batch(batch, SPEC, 4)
    assert [valid.tolist() for _, valid in batches] == [[True] * 4, [True, False, False, False]]
    assert [w for _, w in ids(batch for batch, _ in batches)] == [5, 1, 2, 9, 7, 7, 7, 7]


def test_transform_pickles(sources, to_sample):
    copy = pickle.loads(pickle.dumps(to_sample))  # noqa: S301 (bytes of this very line)
    assert_equal([to_sample(sources["play"][0], 1)], [copy(sources["play"][0], 1)])
