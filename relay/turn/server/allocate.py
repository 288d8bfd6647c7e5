"""What does an Allocate request ask for, and can it be had?

RFC 8656, 7.2, the checks of the request in their order, and the opening of UDP addresses. RFC 6062, 5.1 changes the
checks for TCP; its listeners take time to open, which is ``tcp.py``'s. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from iceagent.net.address import TransportAddress
from relay.stun import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    DONT_FRAGMENT,
    EVEN_PORT,
    MOBILITY_TICKET,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    XOR_RELAYED_ADDRESS,
    AddressErrorCode,
    AddressFamily,
    Message,
)
from relay.turn.credentials import Pair
from relay.turn.server.auth import Refused
from relay.turn.server.service import TurnService

__all__ = ["TCP", "VERSIONS", "Wanted", "open_udp", "tell_relayed", "wanted"]

UDP, TCP = 17, 6
VERSIONS = {int(AddressFamily.IPV4): 4, int(AddressFamily.IPV6): 6}


class Wanted(NamedTuple):
    """What an Allocate request asks for.

    Attributes:
        is_tcp: relayed addresses that take connections.
        versions: of relayed addresses.
        token: of a reservation.
        even: an even port, and whether the next one is to be reserved; ``None``: any port.
        ticket: mobility.
    """

    is_tcp: bool
    versions: tuple[int, ...]
    token: bytes | None
    even: bool | None
    ticket: bool


def wanted(request: Message, *, is_stream: bool, mobility: bool) -> Wanted:
    """Read an Allocate request.

    Args:
        request: authentic.
        is_stream: it came over TCP or TLS.
        mobility: the server grants it.

    Raises:
        Refused: 400, 405, 440, 442.
    """
    transport = request.get(REQUESTED_TRANSPORT)
    if transport is None:
        raise Refused(400, "Bad Request")
    if transport not in (UDP, TCP):
        raise Refused(442, "Unsupported Transport Protocol")
    token, even = request.get(RESERVATION_TOKEN), request.get(EVEN_PORT)
    # RFC 6062, 5.1.
    only_udp = (token, even, request.get(DONT_FRAGMENT))
    if transport == TCP and (not is_stream or any(value is not None for value in only_udp)):
        raise Refused(400, "Bad Request")
    family, additional = request.get(REQUESTED_ADDRESS_FAMILY), request.get(ADDITIONAL_ADDRESS_FAMILY)
    if token is not None and (even is not None or family is not None or additional is not None):
        raise Refused(400, "Bad Request")
    if additional is not None and (family is not None or even or additional != AddressFamily.IPV6):
        raise Refused(400, "Bad Request")
    if family is not None and family not in VERSIONS:
        raise Refused(440, "Address Family not Supported")
    ticket = request.get(MOBILITY_TICKET)
    if ticket:
        raise Refused(400, "Bad Request")
    if ticket is not None and not mobility:
        raise Refused(405, "Mobility Forbidden")
    versions = (4 if family is None else VERSIONS[family],) if additional is None else (4, 6)
    return Wanted(transport == TCP, versions, token, even, ticket is not None)


def open_udp(
    service: TurnService, wants: Wanted, near: str, account: str, now: float
) -> tuple[list[Pair], list[TransportAddress]]:
    """Open what is asked for.

    Args:
        service: has the ports.
        wants: of UDP.
        near: the host that the client speaks to.
        account: whose reservation it is, if one is made.
        now: seconds.

    Returns:
        What the answer says of it, and the addresses.

    Raises:
        Refused: 440, 486, 508.
    """
    if wants.token is not None:
        claimed = service.claim(wants.token, now)
        return [(XOR_RELAYED_ADDRESS, claimed)], [claimed]
    reserves = bool(wants.even)
    if reserves:
        service.check_reservations(account)
    found: dict[int, TransportAddress | Refused] = {}
    pairs: list[Pair] = []
    for version in wants.versions:
        even = wants.even is not None and version == wants.versions[0]
        try:
            opened = service.ports.open(version, near, even=even, pair=reserves)
        except LookupError:
            found[version] = Refused(440, "Address Family not Supported")
        except OSError:
            found[version] = Refused(508, "Insufficient Capacity")
        else:
            found[version] = opened[0]
            if reserves:
                pairs.append((RESERVATION_TOKEN, service.reserve(opened[1], account, now)))
    told, relayed = tell_relayed(found)
    return [*told, *pairs], relayed


def tell_relayed(found: Mapping[int, TransportAddress | Refused]) -> tuple[list[Pair], list[TransportAddress]]:
    """What an answer says of the addresses that were opened, by IP version, and of those that could not be.

    Raises:
        Refused: there is none.
    """
    relayed = [each for each in found.values() if not isinstance(each, Refused)]
    refused = {version: each for version, each in found.items() if isinstance(each, Refused)}
    if not relayed:
        raise next(iter(refused.values()))
    pairs: list[Pair] = [(XOR_RELAYED_ADDRESS, address) for address in relayed]
    for version, why in refused.items():
        number = AddressFamily.IPV6 if version == 6 else AddressFamily.IPV4
        pairs.append((ADDRESS_ERROR_CODE, AddressErrorCode(number, why.code, why.reason)))
    return pairs, relayed
