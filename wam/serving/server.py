"""The server: WebSocket connections on one side, the batcher on the other.

A client connects and gets the metadata as its first binary message. Then every binary message it sends is a request
(see `requests`), answered by a binary message with `actions` [K, dim], or by a text message with one sentence that says
what was wrong; the connection lives on. This is the protocol of the `openpi-client` package. Over HTTP on the same
port: `/healthz` (200 once everything is compiled, 503 before and while shutting down) and `/metrics`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import http
import ipaddress
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from wam.diffusion.sampler import Program
from wam.policy import Policy
from wam.serving.batching import Answer, Batcher, Job
from wam.serving.metrics import CONTENT_TYPE, Metrics
from wam.serving.observations import Fit, ObservationMapping, Observer
from wam.serving.requests import MAKES_ACTIONS, MAKES_VIDEO, OPTIONS, RequestReader
from wam.serving.sessions import LimitError, Session, Sessions
from wam.serving.wire import pack

log = logging.getLogger("wam.serving")

_TRY_AGAIN_LATER, _GOING_AWAY, _IDLE = 1013, 1001, 1000  # codes of RFC 6455 and its registry


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """ValueError for what would be unsafe or senseless."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one"""
    api_key: str = dataclasses.field(default="", repr=False)
    """empty: anybody who reaches the port may ask"""
    open_to_all: bool = False
    """allows a host that others can reach, without a key"""
    modes: tuple[str, ...] = ("policy", "joint")
    """the first is the default of a request; each is compiled at every batch size before the server is healthy"""
    prefixes: bool = False
    """also compile for requests that carry actions already committed"""
    max_batch: int = 16
    batch_window_ms: float = 3.0
    """how long the first request of a batch waits for others"""
    max_sessions: int = 128
    rate: float = 50.0
    """requests a second of one session; 0: no limit"""
    idle_seconds: float = 600.0
    """a session that asks nothing for so long is closed"""
    max_message_bytes: int = 8 << 20
    ping_seconds: float = 20.0
    """between pings, and for their answer"""
    drain_seconds: float = 20.0
    """for requests under way when the server is asked to end"""

    def __post_init__(self):
        for name in ("max_batch", "max_sessions", "max_message_bytes", "idle_seconds", "ping_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, is {getattr(self, name)}")
        if self.rate < 0 or self.batch_window_ms < 0 or not 0 <= self.port < 1 << 16 or not self.modes:
            raise ValueError(
                f"expected rate and batch_window_ms not negative, a port below 65536 and a mode, got {self}"
            )
        if not self.api_key and not self.open_to_all and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached by others: set an API key, or allow it without one explicitly"
            )
        if not all("!" <= letter <= "~" for letter in self.api_key):
            raise ValueError("the API key has characters that a header cannot carry: use visible ASCII without spaces")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass
class _Connections:
    """Counted before their handshake: those that never finish it are bounded, too."""

    most: int
    open: int = 0

    def counted(self) -> type[ServerConnection]:
        """The class of connections that count themselves here."""
        connections = self

        class Counted(ServerConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                connections.open += 1
                super().connection_made(transport)
                if connections.open > connections.most:
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                connections.open -= 1
                super().connection_lost(exc)

        return Counted


class PolicyServer:
    """One policy behind one port.

    Args:
        config: limits and addresses.
        load: makes the policy; called once, in the thread where the policy will run.
        mapping: the clients' names.
        fit: resizes images, where the mapping asks for it.
        program: how its mode is sampled; the others as the policy does by default.
    """

    def __init__(self, config: ServerConfig, load: Callable[[], Policy], mapping: ObservationMapping | None = None,
                 fit: Fit | None = None, program: Program | None = None):  # fmt: skip
        """ValueError: a program of a mode that is not served, or whose rows would depend on each other."""
        if program and program.mode not in config.modes:
            raise ValueError(
                f"program {program.name!r} is of mode {program.mode!r}, the modes are {', '.join(config.modes)}"
            )
        if program and program.reuse and config.max_batch > 1:
            raise ValueError("a program that reuses outputs decides for a whole batch: serve it with max_batch 1")
        self.config, self._load, self._fit, self._program = config, load, fit, program
        self.mapping = mapping or ObservationMapping()
        self.metrics, self.sessions = Metrics(), Sessions(config.max_sessions, config.rate)
        self._thread = ThreadPoolExecutor(1, "policy")
        self.healthy = False
        self._ending = False
        self._asking = 0
        self._batcher: Batcher | None = None
        self._server: Server | None = None
        self._running: asyncio.Task | None = None
        # Beside sessions there are probes of health and metrics.
        self._connections = _Connections(config.max_sessions + 64)
        self.metrics.watch("wam_sessions", "Sessions that are open.", lambda: len(self.sessions))
        self.metrics.watch("wam_connections", "TCP connections that are open.", lambda: self._connections.open)
        self.metrics.watch("wam_healthy", "1 once everything is compiled.", lambda: float(self.healthy))
        self.metrics.watch("wam_busy", "Requests without an answer yet.", lambda: self._asking)

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    # ------------------------------------------------------------ from start to end

    async def listen(self) -> None:
        """Binds the port; health is 503 until `warm_up` is done. OSError: the port is taken."""
        c = self.config
        # Robots send no Origin; a browser does, and no page it shows may speak to a server on this machine.
        self._server = await serve(
            self._serve_session, c.host, c.port, process_request=self._process_request, origins=[None],
            compression=None, max_size=c.max_message_bytes, max_queue=2, ping_interval=c.ping_seconds,
            ping_timeout=c.ping_seconds, server_header=None, create_connection=self._connections.counted(),
        )  # fmt: skip

    async def warm_up(self) -> None:
        """Loads the policy and compiles all that requests will need; the server is healthy then.

        What `load` raises is raised. ValueError: the mapping, or a mode, does not go with the checkpoint.
        """
        loop, c = asyncio.get_running_loop(), self.config
        policy = await loop.run_in_executor(self._thread, self._load)
        observer = Observer(self.mapping, policy, self._fit)
        noisy = {self._program.mode} if self._program and not self._program.imagines else set()
        filmed = tuple(mode for mode in MAKES_VIDEO if mode not in noisy)
        self._reader = RequestReader(observer, c.modes, c.prefixes, filmed)
        self._metadata = pack(_metadata(policy, observer, c, self._program))
        kinds = [(mode, False) for mode in c.modes]
        kinds += [(mode, True) for mode in c.modes if c.prefixes and mode in MAKES_ACTIONS]
        self._batcher = Batcher(
            policy, kinds, self._program, c.max_batch, c.batch_window_ms / 1000, lambda: len(self.sessions),
            self._thread, self.metrics,
        )  # fmt: skip
        await loop.run_in_executor(self._thread, self._batcher.warm_up, log.info)
        self._running = asyncio.create_task(self._batcher.run())
        self.healthy = not self._ending

    async def drain(self) -> None:
        """Ends in order: nobody new, requests under way answered, every connection closed with a reason."""
        self.healthy, self._ending = False, True
        if self._batcher is not None:
            self._batcher.stopped = True
        if self._server is not None:
            self._server.close(close_connections=False)
            end = time.monotonic() + self.config.drain_seconds
            while self._asking and time.monotonic() < end:
                await asyncio.sleep(0.01)
            closing = [c.close(_GOING_AWAY, "the server is shutting down") for c in self._server.connections]
            await asyncio.gather(*closing, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(1.0, end - time.monotonic())):
                    await self._server.wait_closed()
        if self._running is not None:
            self._running.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ HTTP

    def _process_request(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Health, metrics and the key, before any upgrade to WebSocket. None lets the upgrade go on."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(*((200, "OK\n") if self.healthy else (503, "not ready\n")))
        if not self._has_key(request.headers):
            self.metrics.rejected.labels("key").inc()
            response = connection.respond(http.HTTPStatus.UNAUTHORIZED, "expected Authorization: Api-Key KEY\n")
            response.headers["WWW-Authenticate"] = "Api-Key"
            return response
        if path == "/metrics":
            headers = Headers({"Content-Type": CONTENT_TYPE, "Connection": "close"})
            page = self.metrics.page()
            headers["Content-Length"] = str(len(page))
            return Response(200, "OK", headers, page)
        if path != "/":
            return connection.respond(404, "there are /, /healthz and /metrics\n")
        if not self.healthy or self.sessions.full:
            self.metrics.rejected.labels("full" if self.healthy else "not_ready").inc()
            why = "shutting down" if self._ending else "full" if self.healthy else "warming up"
            response = connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"the server is {why}\n")
            response.headers["Retry-After"] = "5"
            return response
        return None

    def _has_key(self, headers: Headers) -> bool:
        if not self.config.api_key:
            return True
        given = headers.get_all("Authorization")
        wanted = f"Api-Key {self.config.api_key}"
        return len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "surrogatepass"), wanted.encode())

    # ------------------------------------------------------------ sessions

    async def _serve_session(self, connection: ServerConnection) -> None:
        try:
            session = self.sessions.open()
        except LimitError as error:  # another took the last place during the handshake
            self.metrics.rejected.labels("full").inc()
            await connection.close(_TRY_AGAIN_LATER, str(error))
            return
        try:
            await connection.send(self._metadata)
            while True:
                async with asyncio.timeout(self.config.idle_seconds):
                    message = await connection.recv()
                start, self._asking = time.monotonic(), self._asking + 1
                try:
                    outcome, reply = await self._reply(session, message, connection)
                    del message
                    await connection.send(reply)
                finally:
                    self._asking -= 1
                session.previous_seconds = time.monotonic() - start
                self.metrics.requests.labels(outcome).inc()
                self.metrics.request_seconds.observe(session.previous_seconds)
        except TimeoutError:
            await connection.close(_IDLE, f"nothing asked for {self.config.idle_seconds:g} s")
        except (ConnectionClosed, _GoneError):
            pass
        finally:
            self.sessions.close(session)
            seconds = time.monotonic() - session.opened
            log.info("session from %s: %d requests in %.1f s", connection.remote_address, session.requests, seconds)

    async def _reply(self, session: Session, message: bytes | str, connection: ServerConnection) -> tuple[str, Any]:
        """(how it ended, what to send): bytes for an answer, a sentence for everything else."""
        assert self._batcher is not None
        session.requests += 1
        try:
            session.bucket.take()
            if self._ending:
                raise LimitError("the server is shutting down")
            request = self._reader(message, time.monotonic() - session.started)
            if not request.reset:
                session.check_name(request.session)
            if request.reset or not session.chunk:
                session.begin(request.session)
            answering = asyncio.ensure_future(self._batcher.answer(Job(request, session.ids, session.memory)))
            answer = await _unless_gone(answering, connection)
            reply = pack(_response(request.return_video, session, answer))
        except LimitError as error:
            return "limited", str(error)
        except ValueError as error:
            return "refused", " ".join(str(error).split())[:1000]
        except _GoneError:
            self.metrics.requests.labels("gone").inc()
            raise
        except Exception as error:
            log.exception("a request failed")
            return "failed", f"the policy failed to answer ({type(error).__name__}); the server's log says more"
        session.answered(answer.memory)
        return "ok", reply


class _GoneError(Exception):
    """The client went before its answer was there."""


async def _unless_gone(answering: asyncio.Future[Answer], connection: ServerConnection) -> Answer:
    """The answer; _GoneError, and the request withdrawn, if the client does not wait for it."""
    closed = asyncio.ensure_future(connection.wait_closed())
    waiting: set[asyncio.Future] = {answering, closed}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise _GoneError
        return answering.result()
    finally:
        answering.cancel()
        closed.cancel()


def _response(return_video: bool, session: Session, answer: Answer) -> dict[str, Any]:
    """What the client gets. ValueError-free: an answer that is not finite is a RuntimeError, never sent to a robot."""
    chunk = answer.chunk
    response: dict[str, Any] = {"chunk": session.chunk, "session": session.name}
    if chunk.actions is not None:
        if not np.isfinite(chunk.actions).all():
            raise RuntimeError("the policy's actions are not finite")
        response |= {"actions": chunk.actions, "action_seconds": chunk.action_seconds}
    if return_video and chunk.video is not None:
        response |= {"video": chunk.video, "video_seconds": chunk.video_seconds}
    milliseconds = {"infer_ms": 1000 * (answer.wait_seconds + answer.policy_seconds)}
    milliseconds |= {"wait_ms": 1000 * answer.wait_seconds, "batch": answer.rows}
    if session.previous_seconds is not None:
        milliseconds["prev_total_ms"] = 1000 * session.previous_seconds
    policy = {"infer_ms": 1000 * answer.policy_seconds, "evaluations": chunk.evaluations}
    return response | {"server_timing": milliseconds, "policy_timing": policy}


def _metadata(policy: Policy, observer: Observer, config: ServerConfig, program: Program | None) -> dict[str, Any]:
    """The first message of a connection: what is served, and what a request may hold."""
    robots = {name: policy.embodiment(name) for name in policy.embodiments}
    return {
        "server": "wam",
        "checkpoint_step": int(policy.step),
        "modes": list(config.modes),
        "program": {"name": program.name, "mode": program.mode, "steps": program.steps} if program else {},
        "modes_with_actions": [mode for mode in config.modes if mode in MAKES_ACTIONS],
        "image_size": [int(n) for n in policy.tokenizer.image_size],
        "action_horizon": int(policy.engine.config.action_horizon),
        # Where chunks see earlier ones: a session's later observations bring so many frames of every camera.
        "history_frames": policy.sessions.frames if policy.sessions else 0,
        "observation_keys": list(observer.keys),
        "options": [option for option in OPTIONS if option != "prefix" or config.prefixes],
        "embodiments": {
            name: {
                "cameras": {camera: observer.cameras[camera] for camera in robot.views if camera in observer.cameras},
                "state": list(robot.spec.state_names),
                "action": list(robot.spec.action_names),
                "action_hz": float(robot.action_hz),
            }
            for name, robot in robots.items()
        },
    }
