import collections
import dataclasses
import json
import math
import pickle
import threading

import grain
import numpy as np
import pytest

from data_pipelines.mixture import Mixture, choose_streams, eval_batches, share_streams
from data_pipelines.shares import Shares
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
    order = mixture({"play": 1.0}).order()
    first, second = ([order[i][1] for i in range(start, start + count)] for start in (0, count))
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second and first != sorted(first)
    other = mixture({"play": 1.0}, seed=1).order()
    assert [other[i][1] for i in range(count)] != first


def order_ids(mixture, count, start=None):
    """The next samples of a process as (source, window), without reading them."""
    order = mixture.order(start)
    return [order[i] for i in range(count)]


@pytest.mark.parametrize("streams", [1, 2, 4, 8, 64])
def test_streams_are_disjoint_and_complete(mixture, sources, streams):
    """At every point all streams together have consumed a prefix of each source's order, each item once."""
    whole = {source: [item[1] for item in order_ids(mixture({name: 1.0}), 130)] for source, name in enumerate(sources)}
    parts = [mixture(batch_size=64, streams=streams, own=(i,)) for i in range(streams)]
    for batches in (1, 3):
        items = [item for part in parts for item in order_ids(part, batches * 64 // streams)]
        for source, name in enumerate(sources):
            windows = [window for of, window in items if of == source]
            assert sorted(windows) == sorted(whole[source][: len(windows)])
            assert len(windows) == parts[0].consumed(parts[0].state_after(batches))[name]


@pytest.mark.parametrize(
    "weights",
    [(0.75, 0.25, None), (0.9, 0.1, None), (0.62, 0.32, 0.06), (1.0, 0.001, 0.001), (1 / 3, math.pi, 0.0123)],
)
def test_every_stream_has_the_shares_of_the_weights_at_all_times(mixture, sources, weights):
    """Also of those whose pattern would alias with the number of streams, were a mix dealt out."""
    given = {name: weight for name, weight in zip(sources, weights, strict=True) if weight}
    for streams in (1, 2, 3, 8, 64):
        for stream in {0, streams - 1}:
            part = mixture(given, batch_size=2 * streams, streams=streams, own=(stream,))
            drawn = np.array([source for source, _ in order_ids(part, 120)])
            for source, name in enumerate(sources):
                asked = np.arange(1, 121) * given.get(name, 0) / sum(given.values())
                assert (np.abs(np.cumsum(drawn == source) - asked) < 1.5).all()


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_grouping_of_streams_among_processes_changes_nothing(mixture, replicas):
    """One process with all streams gets what several with a part each get together, batch by batch."""
    alone = mixture(streams=4).iterator()
    owners = [mixture(streams=4, own=share_streams(4, r, replicas)).iterator() for r in range(replicas)]
    for _ in range(3):
        batch, parts = next(alone), [next(owner) for owner in owners]
        assert_equal([batch], [{key: np.concatenate([part[key] for part in parts]) for key in batch}])
        assert all(owner.state() == alone.state() for owner in owners)
    for iterator in (alone, *owners):
        iterator.close()


def test_the_order_does_not_change_by_accident(mixture, sources):
    """Each source in an order of its own, of the run's seed and the source's name; their turns by exact shares."""
    orders, turns = [], Shares.of({"expert": 2.0, "play": 1.0, "video": 1.0})
    for name in sources:
        seed = int(np.random.SeedSequence([5, *name.encode()]).generate_state(1)[0])
        orders.append(grain.MapDataset.range(len(sources[name])).shuffle(seed=seed).repeat())
    places = [(list(sources).index(name), before) for name, before in map(turns.__getitem__, range(40))]
    assert ids(take(mixture(seed=5), 5)) == [(source, orders[source][before]) for source, before in places]


def test_another_source_beside_it_changes_the_order_of_none(mixture, sources, to_sample):
    """Neither do another position and other weights: a source's order is of the run's seed and its name."""
    alone = [window for _, window in order_ids(mixture({"play": 1.0}), 60)]
    others = {name: sources[name] for name in ("video", "play", "expert")}
    moved = ToSample(SPEC, others, to_sample.normalizers, to_sample.embodiments, encode_text)
    beside = Mixture(others, {"expert": 0.2, "play": 0.7, "video": 0.1}, moved, batch_size=8, seed=0)
    assert [window for source, window in order_ids(beside, 60) if source == 1] == alone[:42]
    assert [window for _, window in order_ids(mixture({"play": 1.0}, seed=1), 60)] != alone


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, r"\(seed: 0 -> 1\): only the values of data.weights"),
        ({"batch_size": 4}, r"\(batch_size: 8 -> 4\)"),
        ({"weights": {"expert": 1.0, "video": 1.0}}, r"\(sources.play: \d entries -> absent\)"),
    ],
)
def test_state_of_other_data_is_refused_field_by_field(mixture, change, said):
    with mixture(**change).iterator() as iterator, pytest.raises(ValueError, match=said):
        iterator.set_state(json.loads(json.dumps(mixture().state_after(1))))


def test_another_store_is_refused_by_name(mixture, sources, to_sample, episode, write_store, config):
    other = write_store([episode("p0", 60, imitate=np.ones(60))], "other")
    changed = sources | {"play": Windows(other, config())}
    state, before = mixture().state_after(1), sources["play"]
    said = (
        rf"sources.play.store: {before.store.hash[:8]}... -> {other.hash[:8]}...; "
        rf"sources.play.windows: {len(before)} -> {len(changed['play'])}"
    )
    with pytest.raises(ValueError, match=said):
        Mixture(changed, mixture().weights, to_sample, batch_size=8, seed=0).adopt(state)


def test_other_weights_go_on_behind_what_was_consumed_and_resume_bit_for_bit(mixture, sources):
    """Changed at batch 4; killed after batch 6; what follows is what an undisturbed run would have seen."""
    light, heavy = {"expert": 2.0, "play": 1.0, "video": 1.0}, {"expert": 0.5, "play": 3.3, "video": 0.002}
    with mixture(light, streams=2).iterator() as iterator:
        first = [next(iterator) for _ in range(4)]
        state = json.loads(json.dumps(iterator.state()))
    with mixture(heavy, streams=2).iterator() as iterator:
        said = iterator.set_state(state)
        assert said.startswith(
            "the data go on with other weights (expert: 2.0 -> 0.5; play: 1.0 -> 3.3; video: 1.0 -> 0.002), behind "
            "what was consumed (16 of expert, 8 of play, 8 of video): no sample is repeated or skipped"
        )
        second = [next(iterator) for _ in range(2)]
        killed = json.loads(json.dumps(iterator.state()))
        third = [next(iterator) for _ in range(3)]
        ended = iterator.state()
    with mixture(heavy, streams=2, threads=1, prefetch=1).iterator() as iterator:
        assert iterator.set_state(killed) is None
        assert_equal([next(iterator) for _ in range(3)], third)
        assert iterator.state() == ended
    seen = ids(first + second + third)
    for source, name in enumerate(sources):
        windows = [window for of, window in seen if of == source]
        whole = [window for _, window in order_ids(mixture({name: 1.0}), len(windows))]
        assert sorted(windows) == sorted(whole)
        assert mixture(heavy, streams=2).consumed(ended)[name] == len(windows)
    # the same shares in other words are no change
    assert mixture({"expert": 4, "play": 2, "video": 2}, streams=2).adopt(state) == (state, None)


def test_epochs_count_what_all_streams_consumed(mixture, sources):
    made = mixture(streams=4)
    assert made.epochs(made.state_after(26)) == {
        name: count / len(sources[name]) for name, count in (("expert", 104), ("play", 52), ("video", 52))
    }


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 1), (8, 64), (64, 2), (3, 4)])
def test_another_number_of_streams_repeats_and_skips_nothing(mixture, sources, before, after):
    """Per source, what was consumed before and after the change is a prefix of its order: counted, item by item."""
    weights = {"expert": 3.1, "play": 1.0, "video": 1.7}
    batch = 2 * math.lcm(before, after)
    first = mixture(weights, batch_size=batch, streams=before)
    consumed = collections.Counter(order_ids(first, 2 * batch))
    second = mixture(weights, batch_size=batch, streams=after)
    state, said = second.adopt(json.loads(json.dumps(first.state_after(2))))
    assert f"in {after} streams instead of {before}" in said and "no sample is repeated or skipped" in said
    assert state["streams"] == after and state["grain"]["next_index"] == 0
    consumed += collections.Counter(order_ids(second, batch, state["start"]))
    # and once more, from a state that already has a start
    third, _ = first.adopt(second.state_after(1, state["start"]))
    consumed += collections.Counter(order_ids(first, batch, third["start"]))
    for source, name in enumerate(sources):
        count = sum(n for (of, _), n in consumed.items() if of == source)
        prefix = collections.Counter(order_ids(mixture({name: 1.0}), count))
        assert {item: n for item, n in consumed.items() if item[0] == source} == prefix


def test_an_iterator_goes_on_with_another_number_of_streams(mixture):
    with mixture(streams=2).iterator() as iterator:
        first = [next(iterator) for _ in range(3)]
        state = json.loads(json.dumps(iterator.state()))
    with mixture(streams=4).iterator() as iterator:
        said = iterator.set_state(state)
        assert said.startswith("the data go on in 4 streams instead of 2, behind what was consumed")
        second = [next(iterator) for _ in range(2)]
        state = json.loads(json.dumps(iterator.state()))
        third = [next(iterator) for _ in range(2)]
    assert sorted(ids(first + second)) == sorted(ids(take(mixture(), 5)))
    with mixture(streams=4).iterator() as iterator:
        assert iterator.set_state(state) is None
        assert_equal([next(iterator) for _ in range(2)], third)


def test_the_run_decides_on_its_streams_once():
    assert choose_streams(4) == 4
    assert choose_streams(4, asked=8) == 8
    assert choose_streams(2, asked=8, recorded=8) == 8  # exact: two processes, four streams each
    assert choose_streams(1, recorded=4) == 4
    assert choose_streams(3, recorded=4) == 3  # continues from the prefix
    with pytest.raises(ValueError, match=r"data\.streams 6 does not divide over 4 data replicas"):
        choose_streams(4, asked=6)
    assert [share_streams(6, r, 3) for r in range(3)] == [(0, 1), (2, 3), (4, 5)]
    with pytest.raises(ValueError, match="cannot be shared out"):
        share_streams(4, 0, 3)


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
        ({"expert": 0.0}, {}, r"weights must be positive numbers, got \{'expert': 0.0\}: leave a source out"),
        ({"expert": 1.0, "play": -1.0}, {}, r"positive numbers, got \{'play': -1.0\}"),
        ({"expert": math.nan}, {}, r"positive numbers, got \{'expert': nan\}"),
        ({"expert": math.inf}, {}, r"positive numbers, got \{'expert': inf\}"),
        ({"expert": 1.0, "typo": 1.0}, {}, r"unknown sources \['typo'\]"),
        ({"expert": 1.0}, {"streams": 3}, "cannot be split into 3 streams"),
        ({"expert": 1.0}, {"streams": 2, "own": (2,)}, "cannot own"),
        ({"expert": 1.0}, {"streams": 2, "own": (1, 1)}, "cannot own"),
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
    halves = [
        list(eval_batches(sources["expert"], to_sample, 0, 4, [5, 1, 2, 9, 7], replica=r, replicas=2)) for r in range(2)
    ]
    for (whole, valid), (left, left_valid), (right, right_valid) in zip(batches, *halves, strict=True):
        assert_equal([whole], [{key: np.concatenate([left[key], right[key]]) for key in whole}])
        assert np.array_equal(valid, np.concatenate([left_valid, right_valid]))


def test_transform_pickles(sources, to_sample):
    copy = pickle.loads(pickle.dumps(to_sample))  # noqa: S301 (bytes of this very line)
    assert_equal([to_sample(sources["play"][0], 1)], [copy(sources["play"][0], 1)])
