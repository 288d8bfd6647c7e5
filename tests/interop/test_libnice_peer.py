"""Does the libnice harness itself work? Two libnice agents meet over loopback, and one that is held wrongly says so.

What is proven here about a :class:`LibnicePeer` need not be doubted where a test of ours against libnice fails.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, cast

import pytest
from aioice import stun

from iceagent import serve
from iceagent.net.address import TransportAddress
from tests.interop.libnice import END_OF_CANDIDATES, LibniceError, LibnicePeer, MissingPart, compile_peer

LOOPBACK = "127.0.0.1"
MAPPED = TransportAddress("203.0.113.9", 4242)
STRANGERS_CREDENTIALS = ("a=ice-ufrag:abcd", "a=ice-pwd:0123456789012345678901")
GIVE_UP_TIMEOUT_S = 30.0
"""Libnice 0.1.21 gives up after 7 s."""


def candidates(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("a=candidate:")]


def credentials(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("a=ice-ufrag:", "a=ice-pwd:"))]


def candidate_address(line: str) -> TransportAddress:
    host, port = line.split(" ")[4:6]
    return TransportAddress(host, int(port))


async def introduce(one: LibnicePeer, other: LibnicePeer) -> None:
    """Hand each peer the other's whole description."""
    await one.add_remote(await other.local_lines())
    await other.add_remote(await one.local_lines())


@asynccontextmanager
async def connected_pair(program: Path) -> AsyncIterator[tuple[LibnicePeer, LibnicePeer]]:
    """A controlling and a controlled peer with a selected pair."""
    async with (
        await LibnicePeer.start(program, controlling=True) as one,
        await LibnicePeer.start(program, controlling=False) as other,
    ):
        await introduce(one, other)
        await one.wait_state("ready")
        await other.wait_state("ready")
        yield one, other


@pytest.mark.parametrize("trickle", [False, True], ids=["complete", "trickle"])
@pytest.mark.parametrize("nomination", ["regular", "aggressive"])
async def test_two_peers_connect_and_exchange_data(
    libnice_program: Path, nomination: Literal["regular", "aggressive"], trickle: bool
) -> None:
    """Both ends become ready on mirrored pairs, and datagrams arrive as they were sent, both ways."""
    async with (
        await LibnicePeer.start(libnice_program, controlling=True, nomination=nomination, trickle=trickle) as one,
        await LibnicePeer.start(libnice_program, controlling=False, nomination=nomination, trickle=trickle) as other,
    ):
        await introduce(one, other)
        for peer in (one, other):
            await peer.wait_state("ready")
        (line,), (other_line,) = candidates(await one.local_lines()), candidates(await other.local_lines())
        assert await one.wait_selected() == (candidate_address(line), candidate_address(other_line))
        assert await other.wait_selected() == (candidate_address(other_line), candidate_address(line))
        await one.send(b"to the controlled peer")
        assert await other.recv() == b"to the controlled peer"
        await other.send(b"to the controlling peer")
        assert await one.recv() == b"to the controlling peer"
        assert one.errors == other.errors == []
        assert list(one.log) == list(other.log) == []


async def test_two_peers_connect_over_ipv6(libnice_program: Path) -> None:
    """Addresses in brackets are read back as addresses."""
    async with (
        await LibnicePeer.start(libnice_program, controlling=True, addresses=["::1"]) as one,
        await LibnicePeer.start(libnice_program, controlling=False, addresses=["::1"]) as other,
    ):
        await introduce(one, other)
        local, remote = await one.wait_selected()
        assert (local.host, remote.host) == ("::1", "::1")
        assert await other.wait_selected(local=remote, remote=local) == (remote, local)


async def test_two_controlling_peers_settle_their_conflict(libnice_program: Path) -> None:
    """RFC 8445, 7.3.1.1: the larger tie-breaker stays controlling; the session goes on."""
    async with (
        await LibnicePeer.start(libnice_program, controlling=True) as one,
        await LibnicePeer.start(libnice_program, controlling=True) as other,
    ):
        await introduce(one, other)
        local, remote = await one.wait_selected()
        await other.wait_selected(local=remote, remote=local)
        await one.send(b"settled")
        assert await other.recv() == b"settled"


async def test_candidates_may_trickle_in_before_the_credentials(libnice_program: Path) -> None:
    """Each line on its own, candidates first: nothing is lost, and nothing happens before the credentials are known."""
    async with (
        await LibnicePeer.start(libnice_program, controlling=True, trickle=True) as one,
        await LibnicePeer.start(libnice_program, controlling=False, trickle=True) as other,
    ):
        theirs = [line async for line in other.trickled_lines()]
        assert theirs[-1] == END_OF_CANDIDATES
        assert theirs == await other.local_lines()
        for line in [*candidates(theirs), *credentials(theirs), END_OF_CANDIDATES]:
            await one.add_remote([line])
        async for line in one.trickled_lines():
            await other.add_remote([line])
        await one.wait_state("ready")
        await other.wait_state("ready")
        assert one.errors == other.errors == []


async def test_checks_may_come_before_any_candidate(libnice_program: Path) -> None:
    """One peer knows candidates before the other knows any: its early checks do no harm, and both connect."""
    async with (
        await LibnicePeer.start(libnice_program, controlling=True, trickle=True) as one,
        await LibnicePeer.start(libnice_program, controlling=False, trickle=True) as other,
    ):
        ours, theirs = await one.local_lines(), await other.local_lines()
        await one.add_remote(credentials(theirs))
        await other.add_remote(ours)
        await other.wait_state("connecting")
        await one.add_remote([*candidates(theirs), END_OF_CANDIDATES])
        local, remote = await one.wait_selected()
        await other.wait_selected(local=remote, remote=local)


async def test_a_peer_that_nobody_answers_fails(libnice_program: Path) -> None:
    """Three sends in two seconds, then five idle ones: libnice gives up, and says so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((LOOPBACK, 0))
        candidate = f"a=candidate:1 1 UDP 2130706431 {LOOPBACK} {silent.getsockname()[1]} typ host"
        async with await LibnicePeer.start(libnice_program, controlling=True) as peer:
            await peer.add_remote([*STRANGERS_CREDENTIALS, candidate, END_OF_CANDIDATES])
            await peer.wait_state("failed", GIVE_UP_TIMEOUT_S)
            assert peer.states == ["gathering", "connecting", "failed"]
            assert peer.selected is None
            assert stun.parse_message(silent.recv(2048)).attributes["USERNAME"].startswith("abcd:")


@pytest.mark.parametrize("size", [1, 2, 1200, 8192])
async def test_an_echoing_peer_returns_every_datagram(libnice_program: Path, size: int) -> None:
    """Byte for byte, whatever the bytes, and only while the echo is on."""
    data = bytes(index % 256 for index in range(0xF0, 0xF0 + size))
    async with connected_pair(libnice_program) as (one, other):
        await other.echo()
        await one.send(data)
        assert await other.recv() == data
        assert await one.recv() == data
        await other.echo(False)
        await one.send(b"no answer to this")
        assert await other.recv() == b"no answer to this"
        await other.send(b"the next thing that comes back")
        assert await one.recv() == b"the next thing that comes back"


@pytest.mark.parametrize(
    "line",
    ["frobnicate", "send 0", "send zz", "a=candidate:1", "a=candidate:1 2 UDP 1 127.0.0.1 9 typ host", "send 00"],
)
async def test_a_line_that_cannot_be_obeyed_is_told(libnice_program: Path, line: str) -> None:
    """An unknown command, bad hexadecimal, bad candidates, and data without a selected pair; the peer lives on."""
    async with await LibnicePeer.start(libnice_program, controlling=True) as peer:
        await peer.add_remote([line])
        reason, _, quoted = (await peer.wait_error()).partition(": ")
        assert reason
        assert quoted == line
        assert len(await peer.local_lines()) == 4


async def test_unknown_attributes_are_ignored(libnice_program: Path) -> None:
    """What a description may hold besides is no error; the line after it is the first to be complained about."""
    async with await LibnicePeer.start(libnice_program, controlling=True) as peer:
        await peer.add_remote(["a=ice-options:ice2 trickle", "a=ice-pacing:5", "frobnicate"])
        assert await peer.wait_error() == "unknown command: frobnicate"
        assert peer.errors == ["unknown command: frobnicate"]


@pytest.mark.parametrize(
    ("switch", "name"),
    [("renomination", "support-renomination"), ("trickle", "ice-trickle"), ("consent", "consent-freshness")],
)
async def test_switches_reach_libnice(libnice_program: Path, switch: str, name: str) -> None:
    """Each switch sets its property, and no other."""
    usual = {
        "regular-nomination": True,
        "controlling-mode": False,
        "support-renomination": False,
        "ice-trickle": False,
        "consent-freshness": False,
        "ice-udp": True,
        "ice-tcp": False,
        "upnp": False,
    }
    peer = await LibnicePeer.start(
        libnice_program,
        controlling=False,
        renomination=switch == "renomination",
        trickle=switch == "trickle",
        consent=switch == "consent",
    )
    async with peer:
        await peer.local_lines()
        assert peer.options == {**usual, name: True}


async def test_role_and_nomination_reach_libnice(libnice_program: Path) -> None:
    """The values that the other tests of options do not use."""
    async with await LibnicePeer.start(libnice_program, controlling=True, nomination="aggressive") as peer:
        await peer.local_lines()
        assert peer.options["controlling-mode"]
        assert not peer.options["regular-nomination"]


async def test_it_gathers_on_every_address_it_is_given(libnice_program: Path) -> None:
    """One host candidate per address, UDP only, and none on other interfaces."""
    async with await LibnicePeer.start(libnice_program, controlling=True, addresses=["127.0.0.1", "127.0.0.2"]) as peer:
        lines = candidates(await peer.local_lines())
        assert {candidate_address(line).host for line in lines} == {"127.0.0.1", "127.0.0.2"}
        assert len(lines) == 2
        assert all(" UDP " in line and line.endswith(" typ host") for line in lines)


class ClassicStunServer(asyncio.DatagramProtocol):
    """Answers every Binding request with MAPPED-ADDRESS and the request's own 16 bytes (RFC 8489, 5 and 14.1)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        address = struct.pack("!HHBBH4s", 0x0001, 8, 0, 1, MAPPED.port, MAPPED.ip.packed)
        self.transport.sendto(struct.pack("!HH16s", 0x0101, len(address), data[4:20]) + address, source)


async def test_a_stun_server_gives_it_a_server_reflexive_candidate(libnice_program: Path) -> None:
    """``stun`` reaches libnice as an address and a port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(ClassicStunServer, local_addr=(LOOPBACK, 0))
    try:
        server = TransportAddress(*transport.get_extra_info("sockname"))
        async with await LibnicePeer.start(libnice_program, controlling=True, stun=server) as peer:
            lines = candidates(await peer.local_lines())
            assert [candidate_address(line) for line in lines if " typ srflx " in line] == [MAPPED]
    finally:
        transport.close()


async def test_a_turn_server_gives_it_a_relayed_candidate(libnice_program: Path) -> None:
    """``turn`` and ``account`` reach libnice."""
    account = ("user", "pass:word@here")
    async with serve([TransportAddress(LOOPBACK, 0)], users=dict([account])) as server:
        turn = next(listening.address for listening in server.listeners if listening.transport == "udp")
        async with await LibnicePeer.start(libnice_program, controlling=True, turn=turn, account=account) as peer:
            (line,) = [line for line in candidates(await peer.local_lines()) if " typ relay " in line]
            assert candidate_address(line).host == LOOPBACK


@pytest.mark.parametrize("turn", ["127.0.0.1:3478", "user@127.0.0.1:3478", "user:word@127.0.0.1"])
def test_a_turn_server_without_account_or_port_is_told(libnice_program: Path, turn: str) -> None:
    """Status 2, and what it needs."""
    command = [str(libnice_program), "--controlling=1", f"--turn={turn}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 2
    assert "--turn needs USER:PASSWORD@HOST:PORT" in done.stderr


async def test_it_ends_with_its_stdin(libnice_program: Path) -> None:
    """A clean end has status 0; closing twice is harmless; a line after that says that the peer has ended."""
    peer = await LibnicePeer.start(libnice_program, controlling=True)
    assert await peer.close() == 0
    assert await peer.close() == 0
    with pytest.raises(LibniceError, match="has ended"):
        await peer.send(b"")


async def test_it_ends_when_told_to(libnice_program: Path) -> None:
    """``quit`` needs no end of stdin; who waits for something is told that it will not come."""
    async with await LibnicePeer.start(libnice_program, controlling=True) as peer:
        await peer.add_remote(["quit"])
        with pytest.raises(LibniceError, match="no datagram: the peer has ended"):
            await peer.recv()


async def test_a_killed_peer_is_gone(libnice_program: Path) -> None:
    """The other end of a killed peer can go on talking to nobody; leaving the block is no error."""
    async with connected_pair(libnice_program) as (one, other):
        await other.kill()
        await one.send(b"anybody there?")
        assert await one.close() == 0


async def test_a_crash_is_told(libnice_program: Path) -> None:
    """A wrong argument ends the program with status 2 and a reason, which the error quotes."""
    with pytest.raises(LibniceError, match=r"exit status 2(?s:.*)needs an IP address: nowhere"):
        async with await LibnicePeer.start(libnice_program, controlling=True, addresses=["nowhere"]):
            pass


async def test_waiting_has_a_limit(libnice_program: Path) -> None:
    """The error says what was waited for and what had happened until then."""
    async with await LibnicePeer.start(libnice_program, controlling=True) as peer:
        await peer.local_lines()
        with pytest.raises(LibniceError, match=r"no state ready within 0.0 s(?s:.*)'gathering'"):
            await peer.wait_state("ready", timeout_s=0.0)


def test_a_compiled_peer_is_used_again(libnice_program: Path) -> None:
    """Compiling into the same folder again needs no compiler."""
    assert compile_peer(libnice_program.parent, environment={"PATH": ""}) == libnice_program


def test_a_missing_compiler_is_told(tmp_path: Path) -> None:
    """No skip: the error names what is missing and the way to get it."""
    with pytest.raises(MissingPart, match=r"^pkg-config is not installed; python tests/provision\.py"):
        compile_peer(tmp_path, environment={"PATH": str(tmp_path)})


def test_a_missing_library_is_told(tmp_path: Path) -> None:
    """What pkg-config says about it is quoted."""
    environment = {"PATH": os.environ["PATH"], "PKG_CONFIG_LIBDIR": str(tmp_path)}
    with pytest.raises(MissingPart, match=r"Package '?nice"):
        compile_peer(tmp_path, environment=environment)
