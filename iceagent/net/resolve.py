"""What addresses has a name?

Host names go to the system's resolver (``/etc/hosts``, search domains, RFC 6724 order) in a thread; SRV records (RFC
2782, wanted by RFC 5928 for ``stun:`` and ``turn:`` URIs) go to the configured name servers with dnspython, which is
imported at the first such question.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from iceagent.net.address import canonical_host
from iceagent.net.host import SrvRecord

if TYPE_CHECKING:
    import dns.asyncresolver
    import dns.rrset
    from dns.rdtypes.IN.SRV import SRV

__all__ = ["resolve", "resolve_srv"]

# The longest name in its text form (RFC 1035, 2.3.4: 255 octets on the wire).
MAX_NAME_LENGTH = 253
# How long all the questions of one SRV resolution may take together.
SRV_LIFETIME_S = 2.0
# An answer with more is somebody's joke: one call cannot try them all.
MAX_SRV_RECORDS = 32


async def resolve(name: str) -> Sequence[str]:
    """The addresses of a name, canonical and each once, in the system's (RFC 6724) order.

    An IP address is its own answer, at once.

    Raises:
        OSError: no such name, or no answer (``socket.gaierror``).
    """
    try:
        return (canonical_host(name),)
    except ValueError:
        pass
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise socket.gaierror(socket.EAI_NONAME, f"a name of {len(name)} characters (1 to {MAX_NAME_LENGTH})")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except ValueError as error:  # UnicodeError of the IDNA codec: an empty or too long label; or a NUL character.
        raise socket.gaierror(socket.EAI_NONAME, f"{name!r} is not a host name: {error}") from error
    return tuple(dict.fromkeys(canonical_host(str(sockaddr[0])) for *_, sockaddr in found))


async def resolve_srv(name: str, resolver: dns.asyncresolver.Resolver | None = None) -> Sequence[SrvRecord]:
    """SRV records in the order to be tried (RFC 2782: by priority, then at random by weight).

    Args:
        name: service, protocol and domain: ``_stun._udp.example.org``.
        resolver: whom to ask, instead of the system's name servers.

    Returns:
        At most 32 records; empty where there are none, where the service is said not to exist (target ``.``), and
        where no answer came within 2 s.
    """
    if len(name) > MAX_NAME_LENGTH or _is_ip_address(name):
        return ()
    loop = asyncio.get_running_loop()
    exception, asyncresolver = await loop.run_in_executor(None, _import_dns)
    try:
        asker = resolver or asyncresolver.Resolver()
        answer = await asker.resolve(name, "SRV", lifetime=SRV_LIFETIME_S)
    except (exception.DNSException, OSError, ValueError):  # ValueError: a name that cannot be encoded.
        return ()
    return _in_order(answer.rrset)


def _import_dns():  # type: ignore[no-untyped-def]
    import dns.asyncresolver
    import dns.exception

    return dns.exception, dns.asyncresolver


def _in_order(rrset: dns.rrset.RRset | None) -> tuple[SrvRecord, ...]:
    if rrset is None:
        return ()
    records = [
        SrvRecord(
            host=record.target.to_text(omit_final_dot=True),
            port=record.port,
            priority=record.priority,
            weight=record.weight,
        )
        for record in cast("list[SRV]", rrset.processing_order())
    ]
    return tuple(record for record in records[:MAX_SRV_RECORDS] if record.host not in ("", "."))


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
