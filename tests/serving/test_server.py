"""The protocol, on a policy that costs nothing."""

import asyncio

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.serving.fake import HORIZON, SIZE, FakePolicy, client, http_get, observation, robot, serving
from wam.diffusion import sampler
from wam.diffusion.reuse import Reuse
from wam.serving.server import PolicyServer, ServerConfig

ARM = robot("arm", ("front", "wrist"))


def expected(seen, session=0, chunk=0, mode="policy"):
    return FakePolicy.chunk(seen, np.array([session >> 32, session & 0xFFFFFFFF, chunk], np.uint32), mode)


def test_a_session_from_metadata_to_answers():
    async def main():
        async with serving(FakePolicy()) as server, client(server) as robot_client:
            about = robot_client.metadata
            assert about["modes"] == ["policy", "joint"] and about["action_horizon"] == HORIZON
            assert about["image_size"] == list(SIZE) and about["checkpoint_step"] == 7
            assert about["embodiments"]["arm"]["cameras"] == {"front": "images/front", "wrist": "images/wrist"}
            seen = observation(ARM)
            first = await robot_client.ask(seen)
            np.testing.assert_array_equal(first["actions"], expected(seen).actions)
            assert set(first) == {"actions", "action_seconds", "chunk", "session", "server_timing", "policy_timing"}
            assert "prev_total_ms" not in first["server_timing"]
            second = await robot_client.ask({**seen, "mode": "joint"})
            np.testing.assert_array_equal(second["actions"], expected(seen, chunk=1, mode="joint").actions)
            assert second["server_timing"]["prev_total_ms"] >= first["policy_timing"]["infer_ms"]
            assert "video" not in second, "off unless asked for"
            third = await robot_client.ask({**seen, "mode": "joint", "return_video": True})
            np.testing.assert_array_equal(third["video"]["wrist"][1], seen["images"]["wrist"])
            assert third["chunk"] == 2
            again = await robot_client.ask({**seen, "reset": True, "session": 5 << 32 | 6})
            assert (again["chunk"], again["session"]) == (0, 5 << 32 | 6)
            np.testing.assert_array_equal(again["actions"], expected(seen, 5 << 32 | 6).actions)
            refused = await robot_client.ask({**seen, "session": 1})
            assert refused == f"'session': this one is {5 << 32 | 6} and has begun; another begins with reset"

    asyncio.run(main())


def test_concurrent_clients_share_calls_and_answers_do_not_depend_on_neighbours():
    async def ask(server, number):
        async with client(server) as one:
            for chunk in range(4):
                seen = observation(ARM, seed=number * 10 + chunk)
                mode = "joint" if number % 5 == 0 else "policy"
                answer = await one.ask({**seen, "mode": mode} | ({"session": number} if chunk == 0 else {}))
                want = expected(seen, number, chunk, mode).actions
                np.testing.assert_array_equal(answer["actions"], want, err_msg=f"{number}, {chunk}")

    async def main():
        policy = FakePolicy(delay=0.002)
        async with serving(policy, batch_window_ms=20) as server:
            await asyncio.gather(*(ask(server, number) for number in range(12)))
            assert len(server.sessions) <= 12
        assert sum(rows for _, rows, _ in policy.calls) == 48
        assert {size for *_, size in policy.calls} <= {1, 2, 4}
        assert all(size / 2 < rows <= size for _, rows, size in policy.calls), "padded to the next static size"
        assert len(policy.calls) <= 30, "requests are answered together"

    asyncio.run(main())


def test_what_is_given_reaches_the_policy():
    async def main():
        modes = ("policy", "forward", "inverse", "video")
        async with serving(FakePolicy(), modes=modes, prefixes=True) as server, client(server) as one:
            seen, fresh = observation(ARM), {**observation(ARM), "reset": True}
            prefix = np.array([[0.5, 1.0], [0.25, 0.0]], np.float32)
            answer = await one.ask({**fresh, "prefix": prefix})
            np.testing.assert_array_equal(answer["actions"][:2], prefix)
            np.testing.assert_array_equal(answer["actions"][2:], expected(seen).actions[2:])
            long = await one.ask({**fresh, "prefix": np.zeros((HORIZON + 1, 2))})
            assert long == "'prefix': expected finite [1 to 4, 2], got [5, 2]"
            clips = {camera: np.full((2, *SIZE, 3), 7, np.uint8) for camera in ARM.views}
            answer = await one.ask({**fresh, "mode": "inverse", "video": clips})
            np.testing.assert_array_equal(answer["actions"], expected(seen, mode="inverse").actions + 14)
            assert await one.ask({**fresh, "mode": "inverse"}) == "mode 'inverse' needs 'video'"
            assert "ask for it with return_video" in await one.ask({**fresh, "mode": "video"})
            answer = await one.ask({**fresh, "mode": "video", "return_video": True})
            assert "actions" not in answer and answer["video"]["front"].shape == (2, *SIZE, 3)
            given = np.ones((HORIZON, 2), np.float32)
            answer = await one.ask({**fresh, "mode": "forward", "actions": given, "return_video": True})
            np.testing.assert_array_equal(answer["actions"], given)
            nothing = await one.ask({**fresh, "mode": "forward", "return_video": True})
            assert nothing == "mode 'forward' needs 'actions'"

    asyncio.run(main())


def test_a_program_samples_its_mode_and_no_other():
    flash = sampler.program("flash", 1)

    async def main():
        policy = FakePolicy()
        async with serving(policy, program=flash) as server, client(server) as one:
            assert policy.programs == {("policy", None), ("joint", "flash")}
            assert one.metadata["program"] == {"name": "flash", "mode": "joint", "steps": 1}
            assert "actions" in await one.ask({**observation(ARM), "mode": "joint"})
            noisy = await one.ask({**observation(ARM), "mode": "joint", "return_video": True})
            assert noisy == "mode 'joint' imagines no video to return"

    asyncio.run(main())
    with pytest.raises(ValueError, match="program 'flash' is of mode 'joint', the modes are policy"):
        PolicyServer(ServerConfig(modes=("policy",)), FakePolicy, program=flash)
    with pytest.raises(ValueError, match="decides for a whole batch: serve it with max_batch 1"):
        PolicyServer(ServerConfig(), FakePolicy, program=sampler.program("joint", 4, reuse=Reuse(0.9, 1)))


def test_a_session_carries_its_memory_and_the_frames_since_its_last_request():
    async def main():
        async with serving(FakePolicy(history=True)) as server, client(server) as one, client(server) as other:
            assert one.metadata["history_frames"] == 2
            first, later = observation(ARM), observation(ARM)
            later["images"] = {camera: np.stack([image] * 2) for camera, image in first["images"].items()}
            for chunk, seen in enumerate((first, later, later)):
                answer = await one.ask(seen)
                np.testing.assert_array_equal(answer["actions"], expected(seen, chunk=chunk).actions)
            assert "frames since the last" in await one.ask(first), "the session goes on"
            np.testing.assert_array_equal((await other.ask(first))["actions"], expected(first).actions)
            answer = await one.ask({**first, "reset": True})
            np.testing.assert_array_equal(answer["actions"], expected(first).actions)

    asyncio.run(main())


def test_one_client_alone_does_not_wait_for_others():
    async def main():
        async with serving(FakePolicy(), batch_window_ms=5000) as server, client(server) as one:
            answer = await one.ask(observation(ARM))
            assert answer["server_timing"]["wait_ms"] < 2000

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": {"front": np.zeros((*SIZE, 3), np.uint8)}}, "lacks the image 'images/wrist'"),
        ({"images/front": 1}, "the key 'images/front' comes twice"),
        ({"state": np.zeros(4)}, "state: expected 3 numbers together (x, y, z), got 4"),
        ({"state": np.array([0, np.nan, 0])}, "'state': expected finite numbers"),
        ({"state": np.array([0, 1e300, 0])}, "'state': expected finite numbers"),
        ({"state": "far"}, "'state': expected finite numbers, got str"),
        ({"embodiment": "octopus"}, "unknown embodiment 'octopus'; the checkpoint knows arm"),
        ({"instruction": " "}, "'instruction': expected a string that is not empty"),
        ({"instruction": 3}, "'instruction': expected a string, got int"),
        ({"mode": "dream"}, "'mode': this server answers policy, joint, got 'dream'"),
        ({"actions": np.zeros((HORIZON, 2))}, "mode 'policy' takes no 'actions'"),
        ({"prefix": np.zeros((1, 2))}, "'prefix': this server was not started for requests with committed actions"),
        ({"video": {"front": np.zeros((2, *SIZE, 3), np.uint8)}}, "mode 'policy' takes no 'video'"),
        ({"video": {"left": 1}}, "unknown key 'video/left'; did you mean"),
        ({"return_video": 1}, "'return_video': expected true or false, got int"),
        ({"return_video": True}, "mode 'policy' imagines no video to return"),
        ({"session": -1}, "'session': expected an integer from 0 to 2^64 - 1"),
        ({"reset_": True}, "unknown key 'reset_'; did you mean 'reset'?"),
        ({"prompt": "push"}, "unknown key 'prompt'; known: actions, embodiment, images/front"),
        ({"instruction": "refuse me"}, "the policy does not like this instruction"),
        ({"instruction": "explode"}, "the policy failed to answer (RuntimeError)"),
        ({"instruction": "go mad"}, "the policy failed to answer (RuntimeError)"),
    ],
)
def test_a_bad_request_gets_a_sentence_and_the_connection_lives_on(change, said):
    async def main():
        async with serving(FakePolicy()) as server, client(server) as one:
            reply = await one.ask({**observation(ARM), **change})
            assert isinstance(reply, str) and said in reply
            answer = await one.ask(observation(ARM))
            np.testing.assert_array_equal(answer["actions"], expected(observation(ARM)).actions)
            assert answer["chunk"] == 0, "what was refused is not part of the session"

    asyncio.run(main())


def test_a_request_that_the_policy_refuses_does_not_harm_those_beside_it():
    async def main():
        policy = FakePolicy(delay=0.005)
        async with serving(policy, batch_window_ms=50) as server, client(server) as one, client(server) as other:
            seen = observation(ARM, seed=3)
            bad, good = await asyncio.gather(one.ask({**observation(ARM), "instruction": "refuse me"}), other.ask(seen))
            assert bad == "the policy does not like this instruction"
            np.testing.assert_array_equal(good["actions"], expected(seen).actions)
            assert policy.calls[0][1] == 2, "they shared a call"

    asyncio.run(main())


def test_messages_beyond_the_size_limit_close_the_connection_and_no_other():
    async def main():
        async with serving(FakePolicy(), max_message_bytes=10_000) as server, client(server) as one:
            async with client(server) as large:
                with pytest.raises(ConnectionClosed) as closed:
                    await large.ask(b"\xc4" * 10_001)
                assert closed.value.rcvd.code == 1009
            assert "expected a binary message" in await one.ask("hello")
            assert "actions" in await one.ask(observation(ARM))

    asyncio.run(main())


def test_a_key_is_asked_for_before_the_upgrade():
    async def main():
        async with serving(FakePolicy(), api_key="s3cret") as server:
            for headers in ({}, {"Authorization": "Api-Key s3cre"}, {"Authorization": "Bearer s3cret"}):
                with pytest.raises(InvalidStatus) as refused:
                    async with client(server, additional_headers=headers):
                        pass
                assert refused.value.response.status_code == 401
            async with client(server, additional_headers={"Authorization": "Api-Key s3cret"}) as one:
                assert "actions" in await one.ask(observation(ARM))
            assert (await http_get(server, "/healthz"))[0] == 200, "probes have no key"
            assert (await http_get(server, "/metrics"))[0] == 401
            status, page = await http_get(server, "/metrics", "Authorization: Api-Key s3cret")
            assert status == 200 and 'wam_requests_total{outcome="ok"} 1.0' in page
            assert 'wam_rejected_connections_total{reason="key"} 4.0' in page
            assert "s3cret" not in repr(server.config)

    asyncio.run(main())


def test_a_page_in_a_browser_may_not_connect():
    async def main():
        async with serving(FakePolicy()) as server:
            with pytest.raises(InvalidStatus) as refused:
                async with client(server, origin="http://127.0.0.1"):
                    pass
            assert refused.value.response.status_code == 403

    asyncio.run(main())


def test_health_is_told_only_once_everything_is_compiled():
    async def main():
        policy = FakePolicy(delay=0.02)
        server = PolicyServer(ServerConfig(port=0, max_batch=3), lambda: policy)
        await server.listen()
        assert await http_get(server, "/healthz") == (503, "not ready\n")
        with pytest.raises(InvalidStatus) as refused:
            async with client(server):
                pass
        assert refused.value.response.status_code == 503
        await server.warm_up()
        assert {(mode, size) for mode, _, size in policy.calls} == {
            (mode, size) for mode in ("policy", "joint") for size in (1, 2, 3)
        }
        assert await http_get(server, "/healthz") == (200, "OK\n")
        assert (await http_get(server, "/favicon.ico"))[0] == 404
        await server.drain()

    asyncio.run(main())


def test_caps_on_sessions_rate_and_idleness():
    async def main():
        async with serving(FakePolicy(), max_sessions=1, rate=2.0, idle_seconds=0.5) as server:
            async with client(server) as one:
                with pytest.raises(InvalidStatus) as refused:
                    async with client(server):
                        pass
                assert refused.value.response.status_code == 503
                replies = [await one.ask(observation(ARM)) for _ in range(3)]
                assert ["actions" in reply for reply in replies[:2]] == [True, True]
                assert replies[2].startswith("more than 2 requests a second; ask again in 0.")
                with pytest.raises(ConnectionClosed) as closed:
                    await asyncio.wait_for(one.connection.recv(), 10)
                assert closed.value.rcvd.reason == "nothing asked for 0.5 s"
            async with client(server) as next_one:
                assert "actions" in await next_one.ask(observation(ARM))

    asyncio.run(main())


def test_who_goes_during_the_call_leaves_nothing_behind():
    async def main():
        policy = FakePolicy(delay=0.05)
        async with serving(policy, batch_window_ms=0) as server, client(server) as one:
            tasks = []
            for number in range(6):
                leaver = client(server)
                gone = await leaver.__aenter__()
                tasks.append(asyncio.create_task(gone.ask(observation(ARM, seed=number))))
                await asyncio.sleep(0.005)
                tasks[-1].cancel()
                gone.connection.transport.abort()
            for seed in range(3):
                seen = observation(ARM, seed=seed)
                answer = await one.ask(seen)
                np.testing.assert_array_equal(answer["actions"], expected(seen, chunk=seed).actions)
            assert len(server.sessions) == 1
            assert sum(rows for _, rows, _ in policy.calls) < 9, "withdrawn requests are not computed"
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def test_draining_answers_what_is_under_way():
    async def main():
        policy = FakePolicy(delay=0.1)
        async with serving(policy, batch_window_ms=0) as server, client(server) as one, client(server) as idle:
            asking = asyncio.create_task(one.ask(observation(ARM)))
            await asyncio.sleep(0.03)
            await server.drain()
            assert "actions" in await asking
            for connection in (one.connection, idle.connection):
                with pytest.raises(ConnectionClosed) as closed:
                    await connection.recv()
                assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "the server is shutting down")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "0.0.0.0"}, "can be reached by others: set an API key"),
        ({"host": "example"}, "can be reached by others: set an API key"),
        ({"api_key": "two words"}, "visible ASCII without spaces"),
        ({"max_batch": 0}, "max_batch must be positive"),
        ({"modes": ()}, "expected rate"),
    ],
)
def test_unsafe_or_senseless_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        ServerConfig(**changes)
    assert ServerConfig(host="0.0.0.0", open_to_all=True).host == "0.0.0.0"
    assert ServerConfig(host="::1").api_key == ""
