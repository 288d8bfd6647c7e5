"""How are ``.local`` names published and resolved?

draft-ietf-mmusic-mdns-ice-candidates: instead of a host address a random name is signalled, which only the local
network can resolve, and related addresses are hidden (RFC 8839, 5.1). The multicast DNS protocol itself is aioice's,
but for what browsers answer (:func:`answers_alone`).
One responder per agent, opened when first needed; without multicast on this host nothing is published or resolved,
and the candidate that needed it is refused with that reason.

DEVIATION, on request: RFC 8839, 5.1, "MUST NOT use FQDN addresses"; pinned by test_mdns_hides_addresses.
"""

from __future__ import annotations

import asyncio
import re
import socket
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from iceagent.candidate import Candidate, CandidateType
from iceagent.net.address import TransportAddress

if TYPE_CHECKING:
    from aioice.mdns import MDnsProtocol

__all__ = ["MdnsNames"]

# One label of letters, digits and hyphens, as browsers make them; longer names are somebody's printer.
_NAME = re.compile(r"[a-zA-Z0-9-]{1,63}\.local")

# Names resolved at a time; a peer's description may hold a thousand.
_MAX_RESOLVING = 16
# Multicast is not repeated by any link layer, and the name may be signalled before its owner can answer: ask again.
_PATIENCE_S = (0.25, 0.75, 1.0)
# RFC 8839, 5.1: what stands for a related address that is not revealed, by family of the candidate.
_HIDDEN = {4: TransportAddress("0.0.0.0", 9), 6: TransportAddress("::", 9)}


class MdnsNames:
    """The names of one agent."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._names: dict[str, str] = {}
        self._protocol: asyncio.Future[MDnsProtocol] | None = None
        self._slots = asyncio.Semaphore(_MAX_RESOLVING)
        self._tasks: set[asyncio.Task[None]] = set()

    def publish(self, candidate: Candidate) -> None:
        """Give the host address of a candidate a name, once, and answer for it."""
        host = candidate.address.host
        if candidate.type is not CandidateType.HOST or host in self._names:
            return
        self._names[host] = name = f"{uuid.uuid4()}.local"
        task = self._loop.create_task(self._publish(name, host))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def hide(self, candidate: Candidate) -> Candidate:
        """The candidate as it is signalled."""
        if candidate.type is CandidateType.HOST:
            name = self._names.get(candidate.address.host)
            return candidate if name is None else replace(candidate, address=candidate.address._replace(host=name))
        return replace(candidate, related_address=_HIDDEN[candidate.address.version])

    async def resolve(self, name: str) -> str | None:
        """The address of a ``.local`` name; ``None``: nobody answered within 2 s, or it is no such name."""
        if not _NAME.fullmatch(name):
            return None
        try:
            async with self._slots:
                protocol = await self._open()
                for patience in _PATIENCE_S:
                    host = await protocol.resolve(name, patience)
                    if host is not None:
                        return host
        except OSError:
            return None
        return None

    async def close(self) -> None:
        """Answer for no name any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._protocol is not None:
            try:
                await (await self._protocol).close()
            except OSError:
                return

    async def _publish(self, name: str, host: str) -> None:
        try:
            await (await self._open()).publish(name, host)
        except OSError:
            # No multicast here: the peer cannot resolve the name, and its other candidates have to do.
            return

    async def _open(self) -> MDnsProtocol:
        if self._protocol is None:
            self._protocol = asyncio.ensure_future(_open(self._loop))
        return await asyncio.shield(self._protocol)


async def _open(loop: asyncio.AbstractEventLoop) -> MDnsProtocol:
    """A responder and resolver on this machine.

    Raises:
        OSError: its port cannot be had.
    """
    # Imported when needed: 55 ms that most agents never have to spend.
    from aioice import mdns

    class Protocol(mdns.MDnsProtocol):
        def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
            if isinstance(data, bytes) and (answers := answers_alone(data)) is not None:
                super().datagram_received(answers, addr)

    multicast = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        # Others on this machine answer for their names on the same port.
        multicast.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        multicast.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        multicast.bind(("", mdns.MDNS_PORT))
        _, protocol = await loop.create_datagram_endpoint(Protocol, sock=multicast)
    except BaseException:
        multicast.close()
        raise
    return protocol


def answers_alone(data: bytes) -> bytes | None:
    """A message without its authority and additional sections; ``None``: it is malformed.

    Chromium's answers have an NSEC record behind them whose name is compressed, as RFC 6762, 18.14 wants it and RFC
    4034, 4.1.1 forbids it: aioice, by way of dnspython, would drop the whole.
    """
    import dns.exception
    import dns.message

    is_response = len(data) >= 12 and data[2] & 0x80
    if not is_response:
        return data
    try:
        return dns.message.from_wire(data[:8] + bytes(4) + data[12:], ignore_trailing=True).to_wire()
    except (dns.exception.DNSException, ValueError):
        return None
