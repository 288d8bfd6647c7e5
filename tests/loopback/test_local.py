"""This machine as a host: its interfaces, its routes, one host per loop."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host, InterfaceKind, SocketOptions
from iceagent.net.local import LocalHost, local_host
from tests.loopback.loops import Ear, Inbox, LoopFactory, on_both_loops, run


@on_both_loops
def test_the_loopback_interface_is_seen(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        (loopback,) = (link for link in await LocalHost().interfaces() if link.name == "lo")
        assert loopback.kind is InterfaceKind.LOOPBACK
        assert (loopback.index, loopback.is_up) == (1, True)
        (address,) = (address for address in loopback.addresses if address.host == "127.0.0.1")
        assert (address.prefix_length, address.flags) == (8, frozenset())

    run(loop_factory, main())


@on_both_loops
def test_a_watched_table_is_read_once(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        subscription = host.watch_interfaces(lambda _: None)
        first = await host.interfaces()
        readings = host._interfaces.readings
        assert [await host.interfaces() for _ in range(5)] == [first] * 5
        assert host._interfaces.readings == readings
        subscription.close()
        subscription.close()
        await host.interfaces()
        assert host._interfaces.readings == readings + 1, "nobody keeps it warm any more"

    run(loop_factory, main())


@on_both_loops
def test_callers_at_once_share_a_reading_and_a_cancelled_one_harms_nobody(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        tasks = [asyncio.ensure_future(host._interfaces.read()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert await tasks[1] == await tasks[2] != ()
        assert host._interfaces.readings == 1

    run(loop_factory, main())


@on_both_loops
def test_a_caller_who_comes_when_the_reading_is_done_but_not_yet_taken(loop_factory: LoopFactory) -> None:
    """A future is done a turn of the loop before its callbacks run; who awaits it then does not wait at all."""

    async def main() -> None:
        host = LocalHost()
        subscription = host.watch_interfaces(lambda _: None)
        reading = host._interfaces._reading
        assert reading is not None
        # Turn by turn, to be there before the callbacks; waiting for the future itself would come after them.
        while not reading.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert "lo" in {link.name for link in await host.interfaces()}
        assert host._interfaces.readings == 1
        subscription.close()

    run(loop_factory, main())


@on_both_loops
def test_closing_while_a_table_is_read(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        host.watch_interfaces(lambda _: None)
        reading = asyncio.ensure_future(host._interfaces.read())
        await asyncio.sleep(0)
        host.close()
        host.close()
        assert "lo" in {link.name for link in await reading}

    run(loop_factory, main())


@on_both_loops
def test_the_source_is_what_the_routes_choose(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        assert host.source_host(TransportAddress("127.0.0.1", 9)) == "127.0.0.1"
        assert host.source_host(TransportAddress("::1", 9)) == "::1"
        assert host.source_host(TransportAddress("fe80::1", 9)) is None, "a link-local address needs a zone"

    run(loop_factory, main())


@on_both_loops
def test_being_suspended_is_what_the_kernels_clocks_differ_by(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        before = host.suspended_s()
        await asyncio.sleep(0.05)
        # The machine that runs the test does not sleep meanwhile.
        assert abs(host.suspended_s() - before) < 0.01

    run(loop_factory, main())


@on_both_loops
def test_time_is_that_of_the_loops_timers_but_finer_than_a_millisecond(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        host = LocalHost()
        fired: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        asked = host.now()
        asyncio.get_running_loop().call_later(0.005, lambda: fired.set_result(host.now()))
        # uvloop may be a millisecond early; how late is the machine's affair.
        assert await fired - asked > 0.0035
        assert abs(host.now() - time.monotonic()) < 1

    run(loop_factory, main())


@on_both_loops
def test_one_host_per_loop(loop_factory: LoopFactory) -> None:
    async def main() -> LocalHost:
        assert local_host() is local_host()
        return local_host()

    assert run(loop_factory, main()) is not run(loop_factory, main())


@on_both_loops
def test_everything_together_as_the_protocol_promises(loop_factory: LoopFactory) -> None:
    async def main(host: Host) -> None:
        inbox, ear, heard = Inbox(), Ear(), Ear()
        sock = host.socket(TransportAddress("127.0.0.1", 0), inbox, SocketOptions())
        sock.send(b"to myself", sock.address)
        await inbox.until(lambda: bool(inbox.received))
        sock.close()
        listener = await host.listen_tcp(TransportAddress("::1", 0), lambda _: heard)
        stream = await host.connect_tcp(listener.address, ear)
        stream.write(b"hello")
        await heard.until(lambda: heard.data == b"hello")
        stream.close()
        await heard.until(lambda: heard.lost == [0])
        listener.close()
        assert list(await host.resolve("192.0.2.7")) == ["192.0.2.7"]
        assert list(await host.resolve_srv("192.0.2.7")) == []

    async def with_host() -> None:
        await main(LocalHost())

    run(loop_factory, with_host())


def test_elsewhere_one_clear_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OSError, match="runs on Linux; on win32"):
        LocalHost()
