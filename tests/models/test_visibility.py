"""Who sees whom: the blockwise network against a dense-mask reference, and by gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_model, small_batch, small_config
from wam.models.attention import Keys, attend
from wam.models.layers import layer_norm
from wam.models.rotary import apply_rope, frame_positions, rope_angles, step_positions
from wam.models.streams import Noisy, observe

M, f, R = 2, 2, 2
CONFIG = small_config(chunks=M, latent_frames=1 + M * f)


@pytest.fixture(scope="module")
def case():
    """Two chunks, two views, two draws; bits differ between the samples."""
    model = random_model(CONFIG)
    batch = small_batch(CONFIG, 4)
    batch["view_mask"][1, 1] = False
    batch["embodiment"][:] = 1
    batch["state_mask"][:] = True
    batch["action_mask"][:] = True
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((4, 2, 1 + M * f, 4, 8)).astype(np.float32)
    K, A = CONFIG.action_horizon, CONFIG.action_dim
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    noisy = Noisy(
        video=normal(4, M, f, 1, 4, 8),
        sigma_video=rng.uniform(0.1, 0.9, (4, M, f)).astype(np.float32),
        frame_mask=np.ones((4, M, f), bool),
        action=normal(4, M, K, A),
        action_mask=batch["action_mask"],
        sigma_action=rng.uniform(0.1, 0.9, (4, M)).astype(np.float32),
        action_sees_video=np.array([0, 1, 0, 1], np.float32),
        video_sees_action=np.array([0, 0, 1, 1], np.float32),
        prefix=np.array([[0, 1], [2, 0], [0, 0], [1, 3]], np.int32),
        draws=normal(4, M, R, K, A),
        sigma_draws=rng.uniform(0.1, 0.9, (4, M, R)).astype(np.float32),
        prefix_draws=np.array([[[0, 1], [2, 0]], [[0, 0], [3, 1]], [[0, 0], [0, 0]], [[1, 2], [3, 0]]], np.int32),
    )
    return model, batch, latents, jax.tree.map(jnp.asarray, noisy)


def run(model, batch, latents, noisy):
    def forward(latents, noisy):
        return model.denoise(model.context(observe(batch, latents, M, f)), noisy)

    return jax.jit(forward)(jnp.asarray(latents), noisy)


def allowed(query, key) -> str:
    """The rule of the design in plain words: `yes`, `no`, or the name of the bit that decides."""
    (qs, qc, qd), (ks, kc, kd) = query, key  # stream, chunk, draw
    if qs == "history":
        return "yes" if ks == "history" and kc <= qc else "no"
    if qs == "state":
        return "yes" if ks == "state" and kc == qc else "no"
    if ks == "history":
        return "yes" if kc < qc else "no"
    if kc != qc:
        return "no"
    if ks == "state":
        return "yes"
    if qs == "draw" or ks == "draw":
        return "yes" if qs == ks and qd == kd else "no"
    if qs == ks:
        return "yes"
    return "video_sees_action" if qs == "video" else "action_sees_video"


def dense(model, batch, latents, noisy):
    """All tokens in one sequence, one L x L mask a sample: slow, plain, and independent of the visibility table."""
    obs = observe(batch, jnp.asarray(latents), M, f)
    context = model.context(obs)  # used for what the noisy tokens read directly, and for the text's keys
    cfg, B, P, V = model.config, latents.shape[0], 4, 2
    streams = {"video": model._video_stream(context.given, noisy), "action": model._action_stream(context.given, noisy),
               "draw": model._draw_stream(context.given, noisy)}  # fmt: skip
    # The first layer's inputs of the context are not kept by `context`: rebuild them.
    gain = jnp.where((jnp.arange(1 + f) == 0)[:, None], model.context_gain[...][0], model.context_gain[...][1])
    x = model.history_in(obs.latents * gain[:, None])
    view = jnp.einsum("BVc,cPD->BVPD", jax.nn.one_hot(obs.camera, cfg.cameras), model.view_embedding[...])
    x = (x + view[:, :, None]).transpose(0, 2, 1, 3, 4).reshape(B, (1 + f) * V, P, cfg.video_width)
    times = jnp.repeat(obs.video_time[:, :: cfg.frames_per_latent][:, : 1 + f] * cfg.latent_rate, V, axis=1)
    angles = {"history": rope_angles(frame_positions(times, cfg.grid), cfg.head_dim)}
    state = model.state_in(obs.state * obs.state_mask, obs.embodiment)
    angles["state"] = rope_angles(step_positions(obs.action_time[:, :, :1] * cfg.latent_rate), cfg.head_dim)
    tokens = {"history": x, "state": state[:, :, None]}
    zero = {
        e: s.modulation(s.condition(jnp.zeros((B, 1, 1))) + context.given.instruction[e])
        for e, s in model.sigma.items()
    }
    mods = {"history": zero["video"], "state": zero["action"]}
    for name, s in streams.items():
        tokens[name], angles[name], mods[name] = s.x, s.angles, s.modulation
    # One token after the other: every token is its own group here.
    for name in tokens:
        G, n = tokens[name].shape[1:3]
        mods[name] = jnp.broadcast_to(mods[name], (B, G, n, *mods[name].shape[3:])).reshape(B, 1, G * n, 6, -1)
        tokens[name], angles[name] = (x.reshape(B, 1, G * n, -1) for x in (tokens[name], angles[name]))
    per = {name: tokens[name].shape[2] for name in tokens}
    frame_chunk = [0] + [1 + i // f for i in range(f)]  # chunk of each history frame
    labels = {
        "history": [("history", frame_chunk[i // (V * P)], 0) for i in range(per["history"])],
        "state": [("state", 1 + i, 0) for i in range(M)],
        "video": [("video", 1 + i // (per["video"] // M), 0) for i in range(per["video"])],
        "action": [("action", 1 + i // (per["action"] // M), 0) for i in range(per["action"])],
        "draw": [("draw", 1 + i // (per["draw"] // M), i // (per["draw"] // (M * R)) % R) for i in range(per["draw"])],
    }
    order = list(tokens)
    flat = [label for name in order for label in labels[name]]
    bits = {"yes": np.ones(B), "no": np.zeros(B), "video_sees_action": np.asarray(noisy.video_sees_action),
            "action_sees_video": np.asarray(noisy.action_sees_video)}  # fmt: skip
    mask = np.stack([np.stack([bits[allowed(q, k)] for k in flat], -1) for q in flat], 1) > 0  # [B, L, L]
    real = np.ones((B, len(flat)), bool)
    view_of = [(i // P) % V for i in range(per["history"])]
    real[:, : per["history"]] = np.asarray(batch["view_mask"])[:, view_of]
    mask &= real[:, None, :]
    for layer in range(cfg.depth):
        from flax import nnx

        graph, stacked = nnx.split(model.blocks)
        blocks = nnx.merge(graph, jax.tree.map(lambda p: p[layer], stacked))  # noqa: B023
        q, k, v, mod = {}, {}, {}, {}
        for name in order:
            block = blocks[model.expert_of[name]]
            mod[name] = block.modulation(mods[name])
            q[name], k[name], v[name] = block.qkv(tokens[name], mod[name][0], mod[name][1], angles[name])
        joined = [jnp.concatenate([t[name][:, 0] for name in order], 1) for t in (q, k, v)]
        logits = jnp.einsum("BLNH,BTNH->BNLT", joined[0], joined[1]) / np.sqrt(cfg.head_dim)
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf), -1)
        out = jnp.einsum("BNLT,BTNH->BLNH", weights, joined[2])
        start = 0
        for name in order:
            expert = model.expert_of[name]
            text_k, text_v = context.keys.text[expert]
            keys = Keys(text_k[layer], text_v[layer], context.given.text_mask[:, None])
            part = out[:, None, start : start + per[name]]
            tokens[name] = blocks[expert].finish(tokens[name], part, mod[name], keys, "xla", patches=False)
            start += per[name]
    return tokens


def test_one_pass_over_all_streams_equals_context_then_denoise(case):
    model, batch, latents, noisy = case
    _, whole = jax.jit(lambda latents, noisy: model(observe(batch, latents, M, f), noisy))(jnp.asarray(latents), noisy)
    separate = run(model, batch, latents, noisy)
    for got, expected in zip(whole[:3], separate[:3], strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, rtol=3e-6, atol=2e-6)


def test_blockwise_equals_the_dense_mask_reference(case):
    model, batch, latents, noisy = case
    out = run(model, batch, latents, noisy)
    tokens = dense(model, batch, latents, noisy)
    streams = model._video_stream(model.context(observe(batch, jnp.asarray(latents), M, f)).given, noisy)
    video = model.video_head(tokens["video"].reshape(streams.x.shape), streams.condition)
    assert np.abs(out.video).max() > 0.1
    np.testing.assert_allclose(np.asarray(out.video).ravel(), np.asarray(video).ravel(), atol=2e-5)
    context = model.context(observe(batch, jnp.asarray(latents), M, f))
    for name, got in (("action", out.action), ("draw", out.draws)):
        stream = getattr(model, f"_{name}_stream")(context.given, noisy)
        h = model.action_norm.norm(tokens[name].reshape(stream.x.shape), stream.condition)
        expected = model.action_out(h, batch["embodiment"])
        np.testing.assert_allclose(np.asarray(got).ravel(), np.asarray(expected).ravel(), atol=2e-5)


def influences(case):
    """influence(output, chunk): size of the gradient of one chunk's output to every input. Compiled once."""
    model, batch, latents, noisy = case

    @jax.jit
    def gradients(inputs, weights):
        def scalar(inputs):
            latents, video, action, draws, state = inputs
            changed = noisy._replace(video=video, action=action, draws=draws)
            context = model.context(observe({**batch, "state": state}, latents, M, f))
            out = model.denoise(context, changed)
            spread = [jnp.cos(jnp.arange(o.size)).reshape(o.shape) * o for o in (out.video, out.action, out.draws)]
            per_chunk = [jnp.moveaxis(o, 1, 0).reshape(M, -1).sum(1) for o in spread]
            return (jnp.stack(per_chunk) * weights).sum()

        return jax.grad(scalar)(inputs)

    inputs = (jnp.asarray(latents), noisy.video, noisy.action, noisy.draws, jnp.asarray(batch["state"]))

    def influence(output: str, chunk: int) -> dict[str, np.ndarray]:
        weights = np.zeros((3, M), np.float32)
        weights[("video", "action", "draws").index(output), chunk] = 1
        grads = [np.abs(np.asarray(g)) for g in gradients(inputs, weights)]
        return dict(zip(("latents", "video", "action", "draws", "state"), grads, strict=True))

    return influence


def reach(x: np.ndarray, sample: int) -> float:
    return float(x[sample].max())


def test_gradients_follow_the_bits_and_never_the_future(case):
    influence = influences(case)
    for chunk in range(M):
        video, action, draws = (influence(output, chunk) for output in ("video", "action", "draws"))
        for sample, (asv, vsa) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
            assert (reach(action["video"][:, chunk], sample) > 0) == bool(asv)
            assert (reach(video["action"][:, chunk], sample) > 0) == bool(vsa)
            assert reach(draws["video"], sample) == 0
            assert reach(draws["action"], sample) == 0
        other = 1 - chunk
        for grads in (video, action, draws):
            for name in ("video", "action", "draws", "state"):
                assert grads[name][:, other].max() == 0, f"chunk {chunk} sees {name} of chunk {other}"
            assert grads["state"][:, chunk].max() > 0
            # Clean chunks before this one are seen, this one and later ones are not.
            seen = 1 + chunk * f
            assert grads["latents"][:, :, :seen].max() > 0
            assert grads["latents"][:, :, seen:].max() == 0
        # A masked view has no influence through attention (the target view is also read directly).
        assert video["latents"][1, 1].max() == 0


def test_forward_path_reads_only_earlier_actions_and_inverse_path_follows_its_bit():
    """With attention's blocks zeroed, what is left are the direct paths."""
    from flax import nnx

    config = small_config(latent_frames=3)
    model = random_model(config)
    for block in model.blocks.values():
        for name in ("out", "text_out"):
            for leaf in ("kernel", "bias"):
                variable = getattr(getattr(block, name), leaf)
                variable[...] = jnp.zeros_like(variable[...])
    batch = small_batch(config, 2)
    batch["action_mask"][:], batch["state_mask"][:], batch["embodiment"][:] = True, True, 1
    batch["video_time"][:] = [0.0, 0.1, 0.2]
    batch["action_time"][:] = np.arange(8) / 40
    latents = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 8))
    graph, state = nnx.split(model)

    def outputs(action, video, sigma_action, sigma_video, asv, vsa):
        model = nnx.merge(graph, state)
        noisy = Noisy(
            video, jnp.full((2, 1, 2), sigma_video), jnp.ones((2, 1, 2), bool), action, batch["action_mask"],
            jnp.full((2, 1), sigma_action), jnp.full((2,), asv), jnp.full((2,), vsa),
        )  # fmt: skip
        out = model.denoise(model.context(observe(batch, latents, 1, 2)), noisy)
        return out.video, out.action

    action, video = jnp.asarray(batch["action"]), jax.random.normal(jax.random.key(1), (2, 1, 2, 1, 4, 8))

    @jax.jit
    def jacobians(sigma_action, sigma_video, asv, vsa):
        first = jax.grad(lambda a: (outputs(a, video, sigma_action, sigma_video, asv, vsa)[0][:, :, 0] ** 2).sum())
        second = jax.grad(lambda a: (outputs(a, video, sigma_action, sigma_video, asv, vsa)[0][:, :, 1] ** 2).sum())
        back = jax.grad(lambda z: (outputs(action, z, sigma_action, sigma_video, asv, vsa)[1] ** 2).sum())
        return first(action), second(action), back(video)

    early, late, back = jacobians(0.0, 0.0, 1.0, 1.0)
    steps = np.asarray(batch["action_time"][0, 0])
    assert np.abs(early[:, :, steps < 0.1]).min() > 0
    assert np.abs(early[:, :, steps >= 0.1]).max() == 0
    assert np.abs(late[:, :, steps >= 0.1]).min() > 0
    assert np.abs(back).max() > 0
    for closed in ((1.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.0)):
        early, late, _ = jacobians(*closed)
        assert np.abs(early).max() == 0
        assert np.abs(late).max() == 0
    for closed in ((0.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 1.0)):
        assert np.abs(jacobians(*closed)[2]).max() == 0


@pytest.mark.parametrize("topology", ["dual", "shared"])
def test_layers_scanned_equal_unrolled_and_rematerialised(topology):
    widths = {"action_width": 32, "action_mlp": 64} if topology == "shared" else {}
    config = small_config(topology=topology, latent_frames=3, **widths)
    batch = small_batch(config)
    latents = jax.random.normal(jax.random.key(0), (6, 2, 3, 4, 8))
    K, A = config.action_horizon, config.action_dim
    noisy = Noisy(
        jax.random.normal(jax.random.key(1), (6, 1, 2, 1, 4, 8)), jnp.full((6, 1, 2), 0.5), jnp.ones((6, 1, 2), bool),
        jax.random.normal(jax.random.key(2), (6, 1, K, A)), batch["action_mask"], jnp.full((6, 1), 0.3),
        jnp.ones(6), jnp.ones(6),
    )  # fmt: skip
    outs = []
    chunked = {"attention": "chunked", "attention_chunk": 3}
    for changes in ({}, {"scan_layers": False}, {"remat": "full"}, {"remat": "dots"}, chunked):
        model = random_model(small_config(topology=topology, latent_frames=3, **widths, **changes))
        outs.append(jax.jit(lambda m=model: m.denoise(m.context(observe(batch, latents, 1, 2)), noisy))())
    for other in outs[1:]:
        np.testing.assert_allclose(outs[0].video, other.video, atol=1e-5)
        np.testing.assert_allclose(outs[0].action, other.action, atol=1e-5)


def test_the_chosen_attention_backend_runs():
    q = jnp.ones((1, 2, 5, 2, 8))
    keys = [Keys(jnp.ones((1, 1, 7, 2, 8)), jnp.ones((1, 1, 7, 2, 8)))]
    text = {
        name: str(jax.make_jaxpr(lambda q, n=name: attend(q, keys, backend=n, chunk=4))(q))
        for name in ("xla", "chunked")
    }
    assert "scan" in text["chunked"]
    assert "scan" not in text["xla"]
    # cuDNN needs an NVIDIA GPU: asking for it elsewhere is an error, never another kernel in its place.
    with pytest.raises(Exception, match=r"(?i)cudnn"):
        jax.block_until_ready(attend(q.astype(jnp.bfloat16), [Keys(*(k.astype(jnp.bfloat16) for k in keys[0][:2]))],
                                     backend="cudnn"))  # fmt: skip
    with pytest.raises(ValueError, match="unknown attention backend"):
        attend(q, keys, backend="flash")


def test_cudnn_gets_a_bias_of_every_query_and_key(monkeypatch):
    """It refuses one that would broadcast over the queries."""
    calls = []

    def kernel(q, k, v, bias, implementation):
        calls.append((implementation, bias.shape, bias.dtype))
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    k = jnp.ones((1, 1, 7, 2, 8), jnp.bfloat16)
    attend(jnp.ones((1, 2, 5, 2, 8), jnp.bfloat16), [Keys(k, k, jnp.ones((1, 1, 7), bool))], backend="cudnn")
    assert calls == [("cudnn", (1, 1, 10, 7), jnp.bfloat16)]


def test_rope_depends_on_relative_positions_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 2, 16)), jnp.float32) for _ in range(2))
    place = lambda t, r, c: rope_angles(jnp.array([[[t, r, c]]], jnp.float32), 16)  # noqa: E731
    score = lambda a, b: (apply_rope(q, place(*a)) * apply_rope(k, place(*b))).sum()  # noqa: E731
    np.testing.assert_allclose(score((0.5, 1, 2), (2.0, 3, 1)), score((1.5, 2, 4), (3.0, 4, 3)), rtol=1e-4)
    assert abs(score((0.5, 1, 2), (2.0, 3, 1)) - score((0.5, 1, 2), (2.0, 3, 2))) > 1e-3


def test_layer_norm_has_no_affine_part():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)) * 4 + 2, jnp.float32)
    y = layer_norm(x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)


def test_nothing_depends_on_what_a_missing_view_holds():
    """Whatever stands in a masked view, observed or noisy: actions and the other views' video stay what they are."""
    config = small_config(chunks=M, latent_frames=1 + M * f, target_views=(0, 1))
    model, batch, rng = random_model(config), small_batch(config, 3), np.random.default_rng(1)
    batch["view_mask"][:] = [[True, False]] * 3
    batch["action_mask"][:], batch["state_mask"][:], batch["embodiment"][:] = True, True, 1
    latents = rng.standard_normal((3, 2, 1 + M * f, 4, 8)).astype(np.float32)
    K, A = config.action_horizon, config.action_dim
    noisy = Noisy(
        video=rng.standard_normal((3, M, f, 2, 4, 8)).astype(np.float32),
        sigma_video=np.full((3, M, f), 0.4, np.float32),
        frame_mask=np.ones((3, M, f), bool),
        action=rng.standard_normal((3, M, K, A)).astype(np.float32),
        action_mask=batch["action_mask"],
        sigma_action=np.full((3, M), 0.3, np.float32),
        action_sees_video=np.ones(3, np.float32),
        video_sees_action=np.ones(3, np.float32),
        prefix=np.zeros((3, M), np.int32),
        draws=rng.standard_normal((3, M, R, K, A)).astype(np.float32),
        sigma_draws=np.full((3, M, R), 0.5, np.float32),
    )
    noisy = jax.tree.map(jnp.asarray, noisy)
    other_latents = latents.copy()
    other_latents[:, 1] = 3.0
    first = run(model, batch, latents, noisy)
    second = run(model, batch, other_latents, noisy._replace(video=noisy.video.at[:, :, :, 1].set(-2.0)))
    np.testing.assert_allclose(second.video[:, :, :, 0], first.video[:, :, :, 0], atol=1e-6)
    np.testing.assert_allclose(second.action, first.action, atol=1e-6)
    np.testing.assert_allclose(second.draws, first.draws, atol=1e-6)
    assert np.abs(second.video[:, :, :, 1] - first.video[:, :, :, 1]).max() > 1e-3
