"""PatchPCA and the hashed text encoder."""

import numpy as np
import pytest

from wam.config import TextConfig, TokenizerConfig
from wam.tokenizers import patch_pca
from wam.tokenizers.patch_pca import PatchPCA
from wam.tokenizers.text import HashedNgrams


def smooth_clips(n: int, frames: int, size: int = 16) -> np.ndarray:
    """Videos of one moving blob on a fixed background: few components suffice."""
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:size, :size] / size
    clips = np.empty((n, frames, size, size, 3))
    for clip in clips:
        start, speed, color = rng.uniform(0.2, 0.8, 2), rng.uniform(-0.1, 0.1, 2), rng.uniform(0.2, 1, 3)
        for t, frame in enumerate(clip):
            y, x = start + t * speed
            frame[:] = 0.1 + color * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 0.02)[..., None]
    return (np.clip(clips, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("r", [1, 2, 4])
def test_shapes_and_round_trip(r):
    """T = 1 + r (F - 1), and with all components kept the round trip is exact to the pixel."""
    clips = smooth_clips(60, 1 + r)
    patch = 4
    full = TokenizerConfig(patch=patch, frames_per_latent=r, channels=patch * patch * 3)
    tokenizer = patch_pca.fit(full, clips, np.zeros(60, int), 1)
    video = smooth_clips(3, 1 + 2 * r)[:, None]
    camera = np.zeros((3, 1), np.int32)
    latents = tokenizer.encode(video, camera)
    assert latents.shape == (3, 1, 3, 16, patch * patch * 3)
    decoded = np.asarray(tokenizer.decode(latents, camera)) * 255
    assert decoded.shape == video.shape
    if r == 1:
        assert np.abs(decoded - video).max() < 0.6
    tail = np.asarray(tokenizer.decode(latents[:, :, 1:], camera, history=latents[:, :, :1])) * 255
    np.testing.assert_allclose(tail, decoded[:, :, 1:], atol=1e-3)


def test_the_first_frame_never_sees_later_ones():
    tokenizer = patch_pca.fit(TokenizerConfig(patch=8, frames_per_latent=2, channels=16), smooth_clips(60, 3),
                              np.zeros(60, int), 1)  # fmt: skip
    video, camera = smooth_clips(2, 5)[:, None], np.zeros((2, 1), np.int32)
    whole = np.asarray(tokenizer.encode(video, camera))
    for frames in (1, 3):
        part = np.asarray(tokenizer.encode(video[:, :, :frames], camera))
        np.testing.assert_allclose(part, whole[:, :, : part.shape[2]], atol=1e-5)


def test_scaling_keeps_unit_mean_square_and_the_gain_whitens():
    clips = smooth_clips(200, 2)
    tokenizer = patch_pca.fit(TokenizerConfig(patch=8, channels=12, power=0.5), clips, np.zeros(200, int), 1)
    latents = np.asarray(tokenizer.encode(clips[:, None], np.zeros((200, 1), np.int32)))
    assert (latents**2).mean() == pytest.approx(1.0, abs=0.05)
    white = (latents * tokenizer.gain[0]).reshape(-1, 12)
    np.testing.assert_allclose(white.std(0), 1.0, atol=0.1)
    covariance = np.cov(white.T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.1


def test_cameras_have_their_own_mean():
    clips = smooth_clips(80, 2)
    clips[40:] = 255 - clips[40:]
    camera = np.repeat([0, 1], 40)
    tokenizer = patch_pca.fit(TokenizerConfig(patch=8, channels=32), clips, camera, 2)
    own = np.asarray(tokenizer.encode(clips[40:, None], np.ones((40, 1), np.int32)))
    wrong = np.asarray(tokenizer.encode(clips[40:, None], np.zeros((40, 1), np.int32)))
    assert (own**2).mean() < (wrong**2).mean()


def test_saved_and_read_back():
    tokenizer = patch_pca.fit(TokenizerConfig(patch=8, channels=8), smooth_clips(30, 2), np.zeros(30, int), 1)
    again = PatchPCA.from_state(*tokenizer.to_state())
    video, camera = smooth_clips(2, 3)[:, None], np.zeros((2, 1), np.int32)
    np.testing.assert_array_equal(tokenizer.encode(video, camera), again.encode(video, camera))
    refit = patch_pca.fit(TokenizerConfig(patch=8, channels=8), smooth_clips(30, 2), np.zeros(30, int), 1)
    np.testing.assert_array_equal(tokenizer.encode(video, camera), refit.encode(video, camera))


def test_bad_input_is_named():
    tokenizer = patch_pca.fit(TokenizerConfig(patch=8, frames_per_latent=2, channels=8), smooth_clips(30, 3),
                              np.zeros(30, int), 1)  # fmt: skip
    with pytest.raises(ValueError, match="T = 1 \\+ 2 n frames, got 4"):
        tokenizer.encode(smooth_clips(1, 4)[:, None], np.zeros((1, 1), np.int32))
    with pytest.raises(ValueError, match="takes 16x16 images, got 8x8"):
        tokenizer.encode(np.zeros((1, 1, 1, 8, 8, 3), np.uint8), np.zeros((1, 1), np.int32))
    with pytest.raises(ValueError, match="does not divide the image size"):
        patch_pca.fit(TokenizerConfig(patch=5, channels=8), smooth_clips(4, 2), np.zeros(4, int), 1)
    with pytest.raises(ValueError, match="exceeds the 48 values of a patch"):
        patch_pca.fit(TokenizerConfig(patch=4, channels=49), smooth_clips(4, 2), np.zeros(4, int), 1)


def test_hashed_text_is_deterministic_and_similar_for_similar_words():
    encode = HashedNgrams(TextConfig(tokens=4, dim=64))
    tokens, mask = encode("Open the drawer")
    assert tokens.shape == (4, 64)
    assert mask.tolist() == [True, True, True, True]
    np.testing.assert_array_equal(tokens, encode("open  the drawer")[0])
    cosine = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))  # noqa: E731
    word = lambda text: encode(text)[0][1]  # noqa: E731
    assert cosine(word("drawer"), word("drawers")) > 0.5 > cosine(word("drawer"), word("button"))
    assert encode("")[1].any() == False  # noqa: E712
    assert encode("one two three four five")[1].all()
