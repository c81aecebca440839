import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.lead import accumulate, fit_lead
from data_pipelines.stats import Statistics, fit_statistics
from data_pipelines.windows import Windows


@pytest.fixture
def windows(episode, write_store, config):
    def make(name="store", seed=0, **changes):
        store = write_store([episode(f"e{i}", 120, seed=seed) for i in range(6)], name)
        return Windows(store, config(**changes))

    return make


@pytest.fixture
def no_images(monkeypatch):
    monkeypatch.setattr("data_pipelines.records.decode_png", lambda _: pytest.fail("an image was decoded"))


def test_quantiles_count_what_the_windows_contain(windows, no_images):
    source = windows(action_horizon=8)  # a horizon of one frame period: every step exactly once
    statistics = fit_statistics([source])
    every = np.concatenate([source.store.low_dim(i)[1][:64] for i in range(len(source.store))])
    actions = np.concatenate([source.low_dim(i)["action"][0] for i in range(len(source))])
    fitted = statistics.action["sawyer_metaworld"]
    assert fitted.count == len(actions) == 6 * 120
    assert np.allclose(fitted.q01, np.quantile(actions, 0.01, axis=0)) and np.allclose(fitted.min, actions.min(0))
    assert np.allclose(fitted.mean, actions.mean(0), atol=1e-6) and np.allclose(fitted.std, actions.std(0), atol=1e-6)
    assert fitted.max.max() <= every.max() + 1e-6
    state_normalizer, action_normalizer = statistics.normalizers("sawyer_metaworld")
    normal = action_normalizer.normalize(actions)
    assert np.allclose(np.quantile(normal, 0.99, axis=0), 1, atol=1e-3)
    assert np.allclose(action_normalizer.denormalize(normal), actions, atol=1e-5)
    states = source.low_dim(3)["state"]
    assert np.allclose(state_normalizer.denormalize(state_normalizer.normalize(states)), states, atol=1e-5)


def test_json_round_trip(windows):
    statistics = fit_statistics([windows()])
    text = json.dumps(statistics.to_json())
    assert json.dumps(Statistics.from_json(json.loads(text)).to_json()) == text


def test_cap_is_evenly_spaced(windows):
    source = windows(action_horizon=8)
    assert fit_statistics([source], max_rows=8 * 10).state["sawyer_metaworld"].count == 10


def test_statistics_of_other_data_are_refused(windows, episode, write_store, config):
    mine, other = windows("mine"), windows("other", seed=1)
    statistics = fit_statistics([mine])
    statistics.check_fitted_on([mine])
    with pytest.raises(ValueError, match=r"fitted on mine \(.*not on other"):
        statistics.check_fitted_on([mine, other])
    video = Windows(write_store([episode("v", 20, stride=2, hz=20.0, free=True)], "video"), config())
    statistics.check_fitted_on([mine, video])  # video has nothing to normalise
    assert list(fit_statistics([mine, video]).stores) == ["mine"]
    with pytest.raises(ValueError, match="no statistics for the embodiment 'sawyer_metaworld'"):
        fit_statistics([video]).normalizers("sawyer_metaworld")


def test_accumulate_sums_deltas_and_holds_the_rest():
    action = np.arange(12.0).reshape(1, 3, 4)
    is_delta = np.array([True, True, False, False])
    assert accumulate(action, 2, is_delta).tolist() == [[4.0, 6.0, 6.0, 7.0]]
    assert accumulate(action, 0, is_delta).tolist() == [[0.0] * 4]


@pytest.mark.parametrize(
    "changes", [{}, {"frame_seconds": (0.0, 0.1, 0.2, 0.3, 0.4), "chunks": 2}, {"action_horizon": 4, "action_hz": 20.0}]
)
def test_lead_finds_where_actions_go(windows, no_images, changes):
    source = windows(**changes)
    statistics = fit_statistics([source])
    lead, r2 = fit_lead([source], statistics, action_dim=6, state_dim=5)
    T = len(source.config.frame_seconds)
    assert lead.shape == (T - 1, 7, 5) and lead.dtype == np.float32 and r2.shape == (T - 1, 5)
    scale = statistics.normalizers("sawyer_metaworld")[0].scale
    expected = np.diag(0.01 / scale[:3])  # the synthetic hand moves by 0.01 of each action
    assert np.allclose(lead[:, :3, :3], expected, atol=1e-3) and (r2[:, :3] > 0.998).all()
    assert (r2[:, 3] < 0.5).all()  # the gripper opening is noise
    assert not lead[:, 4:6].any() and not lead[..., 4:].any() and not r2[:, 4:].any()


def test_a_lead_of_few_windows_stays_small(episode, write_store, config):
    source = Windows(write_store([episode("a", 24)]), config())  # two windows reach 0.1 s: fewer than weights
    lead, r2 = fit_lead([source], fit_statistics([source]), 4, 4)
    assert np.isfinite(lead).all() and np.abs(lead[:, :4]).max() < 1 and r2.max() <= 1
    short = Windows(write_store([episode("b", 9)], "short"), config())
    with pytest.raises(ValueError, match=r"no two windows of 'sawyer_metaworld' reach the frame at 0\.1 s"):
        fit_lead([short], fit_statistics([short]), 4, 4)


def test_a_dimension_that_hardly_moves_leads_nowhere_far(episode, write_store, config):
    """Least squares would give noise of 1e-6 a weight of 1e6, and throw other data about."""
    rng = np.random.default_rng(8)
    episodes = []
    for i in range(4):
        one = episode(f"e{i}", 120)
        action = one.action.copy()
        action[:, 1] = 1e-6 * rng.normal(size=120)
        episodes.append(dataclasses.replace(one, action=action))
    source = Windows(write_store(episodes), config())
    lead, r2 = fit_lead([source], fit_statistics([source]), 4, 4)
    assert np.abs(lead[:, 1]).max() < 1e-3 and (r2[:, [0, 2]] > 0.99).all()
