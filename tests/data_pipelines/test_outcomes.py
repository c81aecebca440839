import numpy as np
import pytest

from data_pipelines.mixture import stack
from data_pipelines.outcomes import Outcomes, success_seconds
from data_pipelines.transforms import ToSample
from data_pipelines.windows import Windows
from wam.batch import BatchSpec, check_batch
from wam.embodiment import Normalizer

META = {"success_step": 80}


def test_seconds_to_success():
    start = np.array([0, 40, 60, 80, 84, 85, 100])
    seconds = success_seconds(META, 40.0, start, 16, 100)
    # None once it is solved: there is nothing left to decide.
    np.testing.assert_array_equal(seconds, [2.0, 1.0, 0.5, *4 * [np.nan]])
    # None for chunks that reach past the end, whose missing part would say how it ends.
    never = success_seconds({"success_step": -1}, 40.0, start, 16, 100)
    np.testing.assert_array_equal(never, [*5 * [np.inf], *2 * [np.nan]])
    np.testing.assert_array_equal(success_seconds(META, 40.0, start, 16, 75), [2.0, 1.0, *5 * [np.nan]])
    assert np.isnan(success_seconds({"success_step": -1, "success": None}, 40.0, start, 16, 100)).all()
    assert np.isinf(success_seconds({"success_step": -1, "success": False}, 40.0, start[:1], 16, 100)).all()


def test_the_value_is_discounted_success_where_the_outcome_is_meant():
    outcomes = Outcomes(gamma=0.25, kinds=("rollout",))
    value, mask = outcomes.targets("rollout", np.array([0.0, 0.5, 2.0, np.inf, np.nan], np.float32))
    np.testing.assert_allclose(value, [1, 0.5, 0.0625, 0, 0])
    assert value.dtype == np.float32
    assert mask.tolist() == [True] * 4 + [False]
    value, mask = outcomes.targets("play", np.array([0.0, 1.0]))
    assert not mask.any() and not value.any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"gamma": 1.0}, "data.value.gamma is a discount a second within"), ({"kinds": ()}, "must name kinds of episodes"),
     ({"kinds": "rollout"}, "must name kinds")],
)  # fmt: skip
def test_bad_settings(changes, said):
    with pytest.raises(ValueError, match=said):
        Outcomes(**changes)


def test_a_store_fills_the_batch_across_its_clips(episode, write_store, config):
    """Episodes are cut into several clips; the value counts from the start of the episode, whatever the clip."""
    episodes = [episode("won", 200, kind="rollout", success_step=160), episode("lost", 120, kind="rollout"),
                episode("shown", 96, success_step=90), episode("played", 96, kind="play", success_step=50)]  # fmt: skip
    windows = Windows(write_store(episodes), config())
    spec = BatchSpec(views=2, frames=3, height=8, width=8, chunks=1, action_horizon=16, action_dim=4, state_dim=4,
                     text_tokens=1, text_dim=2)  # fmt: skip
    one = Normalizer(np.zeros(4), np.ones(4))
    text = lambda _: (np.zeros((1, 2), np.float32), np.ones(1, bool))  # noqa: E731
    names = ("none", "sawyer_metaworld")

    def batch_of(outcomes):
        to_sample = ToSample(spec, {"s": windows}, {names[1]: (one, one)}, names, text, outcomes)
        batch = stack([to_sample(windows[i], 0) for i in range(len(windows))])
        check_batch(batch, spec, len(windows))
        return batch, to_sample.facts

    batch, facts = batch_of(Outcomes(gamma=0.5, kinds=("rollout", "expert")))
    metas = [windows.meta(i) for i in range(len(windows))]
    assert len({windows.locate(i)[0] for i in range(len(windows))}) > len(episodes)
    solved, steps = {"won": 160, "shown": 90}, {"won": 200, "lost": 120, "shown": 96, "played": 96}
    for meta, value, mask in zip(metas, batch["value"][:, 0], batch["value_mask"][:, 0], strict=True):
        name, start = meta["episode"], meta["start_step"]
        learned = name != "played" and start + 16 <= steps[name] and start < solved.get(name, 1000)
        expected = 0.5 ** ((solved[name] - start) / 80) if learned and name in solved else 0.0
        assert value == pytest.approx(expected, abs=1e-6), meta
        assert mask == learned
    assert len({round(float(v), 4) for v in batch["value"][:, 0]}) > 20
    plain, plain_facts = batch_of(None)
    assert not plain["value_mask"].any() and not plain["value"].any()
    assert facts["value"]["gamma"] == 0.5 and "value" not in plain_facts
    np.testing.assert_array_equal(plain["video"], batch["video"])
