"""Clients' names to observations, and the settings that say how."""

import json
import pathlib

import numpy as np
import pytest

from data_pipelines.embodiments import get_embodiment
from data_pipelines.resize import fit_image
from tests.serving.fake import SIZE, FakePolicy, observation, robot
from wam.observations import Embodiment
from wam.serving.observations import ObservationMapping, Observer, flatten
from wam.serving.requests import RequestReader
from wam.serving.sessions import LimitError, Session, Sessions, TokenBucket
from wam.serving.wire import pack

ARM = robot("arm", ("front", "wrist"))
MAPPINGS = sorted((pathlib.Path(__file__).resolve().parents[2] / "experiments" / "serving").glob("*.json"))
DROID = ObservationMapping(
    cameras={"front": "observation/exterior_image_1_left", "wrist": "observation/wrist_image_left"},
    state=("observation/joint_position", "observation/gripper_position"), instruction="prompt",
    default_embodiment="arm", ignored=("observation/exterior_image_2_left",),
)  # fmt: skip


def droid_message(seen):
    return {
        "observation/exterior_image_1_left": seen["images"]["front"],
        "observation/wrist_image_left": seen["images"]["wrist"],
        "observation/joint_position": seen["state"][:2].astype(np.float64),
        "observation/gripper_position": seen["state"][2:],
        "observation/exterior_image_2_left": np.zeros((1, 1), np.int8),
        "prompt": seen["instruction"],
    }


def test_clients_names_become_the_policys():
    seen = observation(ARM, seed=4)
    read = RequestReader(Observer(DROID, FakePolicy()), ("policy",))
    request = read(pack(droid_message(seen)), 1.5)
    assert set(request.observation) == {"images", "state", "instruction", "embodiment", "time"}
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(request.observation["images"][camera], seen["images"][camera])
    np.testing.assert_array_equal(request.observation["state"], seen["state"])
    assert request.observation["state"].dtype == np.float32
    assert (request.observation["instruction"], request.observation["embodiment"]) == ("push", "arm")
    assert request.observation["time"] == 1.5
    with pytest.raises(ValueError, match="the image 'observation/wrist_image_left'"):
        read(pack({k: v for k, v in droid_message(seen).items() if "wrist" not in k}), 0)
    with pytest.raises(ValueError, match=r"'observation/wrist_image': did|unknown key 'observation/wrist_image'"):
        read(pack(droid_message(seen) | {"observation/wrist_image": 1}), 0)
    with pytest.raises(ValueError, match=r"joint_position, .*: expected 3 numbers together \(x, y, z\), got 4"):
        read(pack(droid_message(seen) | {"observation/gripper_position": [0.0, 1]}), 0)


def test_maps_within_maps_and_flat_keys_are_the_same():
    nested = {"observation": {"images": {"front": 1}}, "prompt": "x"}
    assert flatten(nested) == {"observation/images/front": 1, "prompt": "x"}
    with pytest.raises(ValueError, match="comes twice"):
        flatten(nested | {"observation/images/front": 2})
    with pytest.raises(ValueError, match="expected a map"):
        flatten([1])


def test_defaults_hold_only_where_they_are_configured():
    seen = observation(ARM)
    silent = {key: value for key, value in seen.items() if key != "instruction"}
    with pytest.raises(ValueError, match="'instruction': expected a string that is not empty"):
        Observer(ObservationMapping(), FakePolicy())(flatten(silent), 0)
    told = Observer(ObservationMapping(default_instruction="tidy up"), FakePolicy())
    assert told(flatten(silent), 0)["instruction"] == "tidy up"
    assert told(flatten(seen), 0)["instruction"] == "push"
    two = FakePolicy((ARM, robot("crane", ("hook",), 1)))
    nameless = {key: value for key, value in seen.items() if key != "embodiment"}
    with pytest.raises(ValueError, match="'embodiment': expected a string that is not empty"):
        Observer(ObservationMapping(), two)(flatten(nameless), 0)
    hook = observation(two.embodiment("crane"))
    assert Observer(ObservationMapping(), two)(flatten(hook), 0)["embodiment"] == "crane"
    with pytest.raises(ValueError, match="'images/front': the embodiment 'crane' has no such camera"):
        Observer(ObservationMapping(), two)(flatten(hook) | {"images/front": seen["images"]["front"]}, 0)


def test_images_of_another_size_are_refused_unless_resizing_is_switched_on():
    seen = observation(ARM)
    large = flatten(seen) | {"images/front": np.zeros((16, 24, 3), np.uint8)}
    with pytest.raises(ValueError, match=r"'images/front': expected uint8 \[8, 6, 3\], got uint8 \[16, 24, 3\]"):
        Observer(ObservationMapping(), FakePolicy())(large, 0)
    fitted = Observer(ObservationMapping(resize="pad"), FakePolicy(), fit_image)(large, 0)
    assert fitted["images"]["front"].shape == (*SIZE, 3)
    np.testing.assert_array_equal(fitted["images"]["wrist"], seen["images"]["wrist"])
    with pytest.raises(ValueError, match="nothing to resize with"):
        Observer(ObservationMapping(resize="pad"), FakePolicy())
    for wrong in (np.zeros((8, 6, 4), np.uint8), np.zeros((8, 6, 3), np.float32), np.zeros((0, 6, 3), np.uint8), 1):
        with pytest.raises(ValueError, match="'images/front': expected"):
            Observer(ObservationMapping(resize="pad"), FakePolicy(), fit_image)(large | {"images/front": wrong}, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "mapping.json: Expecting"),
        ("[]", "expected a JSON object"),
        ('{"camera": {}}', "ObservationMapping has no field 'camera'; did you mean 'cameras'"),
        ('{"cameras": ["front"]}', "mapping.cameras: expected camera -> key"),
        ('{"state": "state"}', "mapping.state: expected a list of keys, got 'state'"),
        ('{"state": []}', "mapping.state: expected at least one key"),
        ('{"resize": "squash"}', "mapping.resize: expected one of stretch, pad, crop, got 'squash'"),
        ('{"instruction": null}', "mapping.instruction: expected a string, got None"),
        ('{"state": ["time"]}', "mapping: the key 'time' is used twice"),
    ],
)
def test_a_wrong_mapping_is_named(tmp_path, text, said):
    (tmp_path / "mapping.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        ObservationMapping.read(tmp_path / "mapping.json")


def test_a_mapping_that_does_not_go_with_the_checkpoint_is_named():
    with pytest.raises(ValueError, match="lacks the camera 'wrist' of the checkpoint"):
        Observer(ObservationMapping(cameras={"front": "a"}), FakePolicy())
    with pytest.raises(ValueError, match="has 'left'; the checkpoint's cameras are front, wrist"):
        Observer(ObservationMapping(cameras={"front": "a", "wrist": "b", "left": "c"}), FakePolicy())
    with pytest.raises(ValueError, match="unknown embodiment 'leg'"):
        Observer(ObservationMapping(default_embodiment="leg"), FakePolicy())
    with pytest.raises(ValueError, match="the key 'mode' is an option"):
        RequestReader(Observer(ObservationMapping(instruction="mode"), FakePolicy()), ("policy",))


@pytest.mark.parametrize("path", MAPPINGS, ids=lambda path: path.stem)
def test_the_mappings_we_ship_go_with_their_robots(path):
    mapping = ObservationMapping.read(path)
    spec = get_embodiment(mapping.default_embodiment)
    policy = FakePolicy((Embodiment(spec, views=tuple(mapping.cameras), action_hz=spec.control_hz),))
    assert set(json.loads(path.read_text())["state"]) < set(Observer(mapping, policy, fit_image).keys)


def test_sessions_and_rates_are_bounded():
    now = [0.0]
    bucket = TokenBucket(4.0, lambda: now[0])
    for _ in range(4):
        bucket.take()
    with pytest.raises(LimitError, match=r"more than 4 requests a second; ask again in 0\.250 s"):
        bucket.take()
    now[0] = 0.25
    bucket.take()
    now[0] = 1000.0
    for _ in range(4):
        bucket.take()
    with pytest.raises(LimitError):
        bucket.take()
    sessions = Sessions(2, 0.0)
    first = sessions.open()
    sessions.open()
    with pytest.raises(LimitError, match="has 2 sessions, which is its most"):
        sessions.open()
    sessions.close(first)
    sessions.open()


def test_a_sessions_noise_is_keyed_by_its_name_and_chunk():
    session = Session(TokenBucket(0.0))
    assert session.ids.tolist() == [0, 0, 0]
    session.begin((3 << 32) + 9)
    session.answered("memory")
    assert session.ids.tolist() == [3, 9, 1] and session.memory == "memory"
    session.check_name(None)
    session.check_name((3 << 32) + 9)
    with pytest.raises(ValueError, match="'session': this one is"):
        session.check_name(4)
    session.begin(None)
    assert session.ids.tolist() == [0, 0, 0] and session.memory is None
