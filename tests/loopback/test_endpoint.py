"""Any asyncio.DatagramProtocol runs over an agent, aioquic's among them. Loopback only."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import os
import weakref
from typing import Any, cast

import pytest
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.connection import QuicConnection

from iceagent import Agent, AgentClosed, AgentState, UsageError, create_datagram_endpoint
from iceagent.endpoint import AgentTransport
from iceagent.events import SelectedPathChanged
from tests.loopback.agents import config, connected
from tests.loopback.loops import LoopFactory, News, on_both_loops, run


class Recorder(News, asyncio.DatagramProtocol):
    """Writes down everything that a transport tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Any, ...]] = []
        self.transport: AgentTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(AgentTransport, transport)
        self._hear("made")

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._hear("data", data, addr)

    def error_received(self, exc: Exception) -> None:
        self._hear("error", getattr(exc, "errno", None))

    def connection_lost(self, exc: Exception | None) -> None:
        self._hear("lost", exc)

    def pause_writing(self) -> None:
        self._hear("pause")

    def resume_writing(self) -> None:
        self._hear("resume")

    def _hear(self, *what: Any) -> None:
        self.heard.append(what)
        self.tell()

    @property
    def kinds(self) -> list[str]:
        return [what[0] for what in self.heard]

    async def until_data(self, data: bytes) -> None:
        await self.until(lambda: any(what[:2] == ("data", data) for what in self.heard))


async def endpoint(agent: Agent, component: int = 1) -> tuple[AgentTransport, Recorder]:
    return await create_datagram_endpoint(Recorder, agent=agent, component=component)


class TestTransport:
    @on_both_loops
    def test_datagrams_both_ways_whatever_the_address(self, loop_factory: LoopFactory) -> None:
        async def main() -> None:
            async with connected() as (a, b):
                (left, at_a), (right, at_b) = await endpoint(a), await endpoint(b)
                for address in (None, ("192.0.2.1", 1), ("::1", 1, 0, 0), "nonsense"):
                    left.sendto(b"to b", address)
                left.sendto(bytearray(b"bytearray"))
                left.sendto(memoryview(b"memoryview"))
                left.sendto(b"")
                right.sendto(b"to a")
                await at_b.until_data(b"")
                await at_a.until_data(b"to a")
                assert [what[1] for what in at_b.heard[1:]] == [*[b"to b"] * 4, b"bytearray", b"memoryview", b""]
                assert {what[2] for what in at_b.heard[1:]} == {right.get_extra_info("peername")}
                assert at_a.transport is left and left.get_protocol() is at_a

        run(loop_factory, main())

    async def test_what_it_knows(self) -> None:
        async with connected() as (a, _):
            transport, _protocol = await endpoint(a)
            path = a.path()
            assert path is not None
            assert transport.get_extra_info("sockname") == tuple(path.base)
            assert transport.get_extra_info("agent") is a
            assert transport.get_extra_info("socket") is None
            assert not transport.is_closing()

    async def test_what_came_before_the_protocol_is_not_lost(self) -> None:
        async with connected() as (a, b):
            b.send(b"early")
            left, right = await a.recv(), asyncio.ensure_future(b.recv())
            assert left == b"early"
            a.send(b"1")
            assert await right == b"1"
            a.send(b"2")
            a.send(b"3")
            _, at_b = await endpoint(b)
            await at_b.until_data(b"3")
            assert [what[1] for what in at_b.heard[1:]] == [b"2", b"3"]

    async def test_the_alias_survives_a_restart(self) -> None:
        async with connected() as (a, b):
            (left, _), (right, at_b) = await endpoint(a), await endpoint(b)
            alias = right.get_extra_info("peername")
            changes = b.events()
            b.set_remote_description(a.restart())
            a.set_remote_description(b.local_description)
            async for event in changes:
                if isinstance(event, SelectedPathChanged):
                    break
            left.sendto(b"after")
            await at_b.until_data(b"after")
            assert at_b.heard[-1] == ("data", b"after", alias)
            assert right.get_extra_info("peername") == alias

    async def test_writing_is_never_paused(self) -> None:
        """A datagram leaves at once or is lost, as over a network; there is no buffer to fill."""
        async with connected() as (a, b):
            (left, at_a), (_, at_b) = await endpoint(a), await endpoint(b)
            left.set_write_buffer_limits(high=10, low=1)
            for number in range(2000):
                left.sendto(b"%04d" % number + bytes(1000))
                assert left.get_write_buffer_size() == 0
            assert left.get_write_buffer_limits() == (0, 0)
            left.sendto(b"last")
            await at_b.until_data(b"0000" + bytes(1000))
            assert at_a.kinds == ["made"]

    async def test_another_protocol_may_take_over(self) -> None:
        async with connected() as (a, b):
            (left, first), (right, _) = await endpoint(a), await endpoint(b)
            second = Recorder()
            left.set_protocol(second)
            right.sendto(b"x")
            await second.until_data(b"x")
            assert first.kinds == ["made"] and left.get_protocol() is second
            with pytest.raises(UsageError, match="no DatagramProtocol"):
                left.set_protocol(asyncio.Protocol())

    async def test_what_cannot_be_sent(self) -> None:
        """As over a socket: ``error_received`` gets an OSError, ``sendto`` does not raise."""
        async with connected() as (a, _):
            left, at_a = await endpoint(a)
            left.sendto(bytes(65_508))
            assert at_a.heard[1:] == [("error", errno.EMSGSIZE)]


class TestEnds:
    @on_both_loops
    def test_closing_leaves_the_agent_open(self, loop_factory: LoopFactory) -> None:
        async def main() -> None:
            async with connected() as (a, b):
                left, at_a = await endpoint(a)
                left.close()
                left.close()
                left.abort()
                assert left.is_closing()
                await at_a.until(lambda: "lost" in at_a.kinds)
                left.sendto(b"into the void")
                b.send(b"for recv")
                assert await a.recv() == b"for recv"
                a.send(b"from send")
                assert await b.recv() == b"from send"
                assert at_a.heard == [("made",), ("lost", None)]
                # And a new one may come.
                right, again = await endpoint(a)
                right.sendto(b"again")
                assert await b.recv() == b"again"
                assert again.kinds == ["made"]

        run(loop_factory, main())

    async def test_closing_in_connection_made(self) -> None:
        class Shy(Recorder):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                transport.close()

        async with connected() as (a, b):
            _, protocol = await create_datagram_endpoint(Shy, agent=a)
            await protocol.until(lambda: "lost" in protocol.kinds)
            b.send(b"for recv")
            assert await a.recv() == b"for recv"
            assert protocol.kinds == ["made", "lost"]

    async def test_a_protocol_that_raises_leaves_the_agent_as_it_was(self) -> None:
        class Broken(Recorder):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                raise ZeroDivisionError

        async with connected() as (a, _):
            for _attempt in range(2):
                with pytest.raises(ZeroDivisionError):
                    await create_datagram_endpoint(Broken, agent=a)
            await endpoint(a)

    @on_both_loops
    def test_the_agent_is_closed(self, loop_factory: LoopFactory) -> None:
        async def main() -> None:
            async with connected() as (a, _):
                left, at_a = await endpoint(a)
                closing = asyncio.ensure_future(a.aclose())
                # A protocol's timer does not know yet.
                for _ in range(10):
                    left.sendto(b"too late")
                    await asyncio.sleep(0)
                await closing
                left.sendto(b"too late")
                await at_a.until(lambda: "lost" in at_a.kinds)
                assert at_a.heard == [("made",), ("lost", None)] and left.is_closing()

        run(loop_factory, main())

    async def test_it_is_closed_at_once(self) -> None:
        """Before the transport had a turn of the loop."""
        async with connected() as (a, _):
            _, at_a = await endpoint(a)
            await a.aclose()
            await at_a.until(lambda: "lost" in at_a.kinds)
            assert at_a.kinds == ["made", "lost"]

    async def test_no_endpoint_on_a_closed_agent(self) -> None:
        agent = Agent(config(), controlling=True)
        await agent.aclose()
        with pytest.raises(AgentClosed):
            await endpoint(agent)

    async def test_nothing_keeps_a_closed_agent(self) -> None:
        async with connected() as (a, b):
            await endpoint(a)
            gone = weakref.ref(a)
        del a, b
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        assert gone() is None


class TestComponents:
    async def test_each_has_an_endpoint_of_its_own(self) -> None:
        two = config(components=2)
        async with connected(two, two) as (a, b):
            (rtp, _), (rtcp, _) = await endpoint(a, 1), await endpoint(a, 2)
            (right, at_rtp), (_, at_rtcp) = await endpoint(b, 1), await endpoint(b, 2)
            rtp.sendto(b"rtp")
            rtcp.sendto(b"rtcp")
            await at_rtp.until_data(b"rtp")
            await at_rtcp.until_data(b"rtcp")
            assert at_rtp.kinds == at_rtcp.kinds == ["made", "data"]
            right.close()
            rtcp.sendto(b"more")
            await at_rtcp.until_data(b"more")

    async def test_one_that_is_not_there_or_taken(self) -> None:
        async with connected() as (a, _):
            with pytest.raises(UsageError, match="component 2 is none of this agent's"):
                await endpoint(a, 2)
            await endpoint(a)
            with pytest.raises(UsageError, match="has an endpoint already"):
                await endpoint(a)


@on_both_loops
def test_quic_carries_a_megabyte_over_a_path(loop_factory: LoopFactory) -> None:
    """aioquic unchanged: its server and its client, a stream there, the digest back, and an orderly end."""
    from examples.quic_over_ice import configurations

    server_configuration, client_configuration = configurations()
    data = os.urandom(1_000_000)

    async def main() -> None:
        answers: set[asyncio.Task[None]] = set()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(hashlib.sha256(await reader.read()).digest())
            writer.write_eof()

        def on_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            answers.add(asyncio.ensure_future(answer(reader, writer)))

        async with connected() as (a, b):
            await create_datagram_endpoint(
                lambda: QuicServer(configuration=server_configuration, stream_handler=on_stream), agent=b
            )
            transport, client = await create_datagram_endpoint(
                lambda: QuicConnectionProtocol(QuicConnection(configuration=client_configuration)), agent=a
            )
            client.connect(transport.get_extra_info("peername"))
            await client.wait_connected()
            reader, writer = await client.create_stream()
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == hashlib.sha256(data).digest()
            client.close()
            await client.wait_closed()
            assert b.statistics().bytes_received > len(data)
            assert a.state is b.state is AgentState.CONNECTED

    run(loop_factory, main())
