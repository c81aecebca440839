"""Two frames of a real Franka arm with its poses: through a store of video, as a pose target relative to the first."""

import numpy as np

from data_pipelines.episode import Episode
from data_pipelines.store import ClipStore, ShardWriter, finish_store
from data_pipelines.video_codec import VideoCodec
from data_pipelines.windows import WindowConfig, Windows
from wam import rotations
from wam.embodiment import EmbodimentSpec, Rotation

HZ = 4.0
POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
TURN = Rotation("hand", POSE[3:6], "euler_xyz_extrinsic")
SPEC = EmbodimentSpec(
    name="franka_pose",
    action_kinds=("relative",) * 6 + ("gripper",),
    state_names=POSE,
    action_names=POSE,
    control_hz=HZ,
    state_rotations=(TURN,),
    action_rotations=(TURN,),
)


def test_the_pair_goes_through_a_store_and_back(shared_samples, tmp_path):
    with np.load(shared_samples / "vjepa2_franka" / "franka_example_traj.npz", allow_pickle=False) as pair:
        frames, states = pair["observations"][0], pair["states"][0].astype(np.float32)
    assert frames.shape == (2, 256, 256, 3) and frames.dtype == np.uint8 and states.shape == (2, 7)
    meta = {"episode": "pair", "task": "pair", "instruction": "", "embodiment": SPEC.name, "kind": "robot",
            "layout": None, "control_hz": HZ, "success_step": -1}  # fmt: skip
    with ShardWriter(tmp_path, "pair", codec=VideoCodec()) as writer:
        writer.add(Episode({"front": frames}, np.array([0, 1]), states, states[1:], np.ones(1, bool), meta))
    finish_store(tmp_path, embodiment=SPEC)
    config = WindowConfig((0.0, 1 / HZ), action_horizon=1, action_hz=HZ, views=("front",), cameras=("front",))
    windows = Windows(ClipStore(tmp_path), config)
    assert len(windows) == 1
    window = windows[0]

    error = np.square(window["frames"][0].astype(np.float64) - frames).mean()
    assert 10 * np.log10(255**2 / error) > 35, "dB"
    action = window["action"][0]
    np.testing.assert_allclose(action[0, :3], states[1, :3] - states[0, :3], atol=1e-6)
    before, after = (rotations.to_matrix(state[3:6], TURN.representation) for state in states)
    np.testing.assert_allclose(rotations.to_matrix(action[0, 3:9], "rot6d"), before.T @ after, atol=1e-6)
    back = SPEC.decode_action(action, states[0])[0]
    np.testing.assert_allclose(back[[0, 1, 2, 6]], states[1, [0, 1, 2, 6]], atol=1e-6)
    np.testing.assert_allclose(rotations.to_matrix(back[3:6], TURN.representation), after, atol=1e-6)
    assert np.abs(states[1] - states[0]).max() > 1e-3, "it moves"
