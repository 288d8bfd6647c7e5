"""How is a probe done?

The interfaces are read, an agent gathers candidates, and beside it the servers are asked where they see us
(``inquiry.py``) and whether they relay for us (``relays.py``). Where no server is named, one of ours is started on this
host's loopback addresses, STUN and TURN, for as long as the probe lasts: that needs no network at all. The routers that
default routes lead to are asked for a mapping with each protocol (``portmap.py``), unless ``Config.portmap`` is off.
Nothing else is ever asked of anybody, no name that was not given.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from iceagent.agent import Agent
from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config, IceServer
from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import Host, Interface
from iceagent.probe import verdict
from iceagent.probe.advice import advise
from iceagent.probe.inquiry import Inquiry
from iceagent.probe.portmap import NO_ROUTER, ask_routers
from iceagent.probe.relays import RelayInquiry
from iceagent.probe.report import NotTested, Report, ServerStatus
from iceagent.serving import serve
from portmap.report import GatewayReport
from relay.uri import ServerUri

__all__ = ["PUBLIC_SERVERS", "ProbeOptions", "measure"]

PUBLIC_SERVERS = (
    "stun:stun.l.google.com:19302",
    "stun:stun.cloudflare.com:3478",
    "stun:stun.nextcloud.com:443",
    "stun:stunserver2025.stunprotocol.org:3478",
)
"""Well-known public STUN servers of different operators; the last one does RFC 5780. Asked on demand only."""

# Once the servers are done with, a gathering that asked the same ones gets so much longer.
GATHERING_GRACE_S = 0.5
# Of our own server: a row has one, and there are two transports and two IP versions.
MAX_ALLOCATIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """What is probed.

    Attributes:
        servers: who is asked, STUN and TURN; none: our own server on loopback, which is both. Of credentials, user
            name and password count.
        config: which addresses may be used, and how sockets are opened; its servers are not looked at.
        timeout_s: seconds for all questions to the network.
    """

    servers: tuple[IceServer, ...] = ()
    config: Config = field(default_factory=Config)
    timeout_s: float = 5.0


async def measure(
    options: ProbeOptions,
    host: Host,
    *,
    rng: random.Random | None = None,
    system_rng: random.Random | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Probe once.

    Args:
        options: what is probed.
        host: where from.
        rng: for order and jitter; ``None``: the system's.
        system_rng: for ids and ports; ``None``: the system's.
        tell: hears what is being done, a phrase for a person.

    Raises:
        OSError: the interfaces cannot be read.
        relay.uri.BadUri: a server is no URI.
    """
    started = host.now()
    tell("reading the interfaces")
    interfaces = await host.interfaces()
    system_rng = system_rng or random.SystemRandom()
    timeout_s = options.timeout_s
    inquiry = Inquiry(host, interfaces, options.config, timeout_s=timeout_s, system_rng=system_rng, tell=tell)
    relays = RelayInquiry(
        host,
        interfaces,
        options.config,
        timeout_s=timeout_s,
        rng=rng or system_rng,
        system_rng=system_rng,
        tell=tell,
    )
    is_embedded = not options.servers
    # A server of ours is there until the goodbyes of the others have been answered.
    async with (
        _servers(host, interfaces, options, inquiry, system_rng) as asked,
        relays,
        _candidates(host, options, rng) as candidates,
    ):
        routers, _, _ = await asyncio.gather(
            ask_routers(host, options.config, timeout_s, rng=rng or system_rng, system_rng=system_rng),
            inquiry.run(asked.uris),
            relays.run(asked.relays, are_ours=is_embedded),
        )
        lines = await candidates()
        await relays.run_again(have_others=any(Candidate.parse(line).type is CandidateType.RELAYED for line in lines))
    for seen in relays.observations:
        inquiry.note_sight(seen)
    findings = inquiry.findings(is_embedded=is_embedded)
    relays.note_stun({row.uri for row in findings.servers if row.status is ServerStatus.ANSWERED})
    portmap = NotTested(reason=routers) if isinstance(routers, str) else routers
    return _report(findings, relays, portmap, lines, (host.now() - started) * 1000)


def _report(
    findings: verdict.Findings,
    relays: RelayInquiry,
    portmap: tuple[GatewayReport, ...] | NotTested,
    candidates: tuple[str, ...],
    duration_ms: float,
) -> Report:
    report = Report(
        interfaces=verdict.interface_rows(findings.interfaces),
        candidates=candidates,
        udp={version: verdict.udp(version, findings) for version in (4, 6)},
        reflexive=verdict.reflexive(findings.observations),
        nat=verdict.nat(findings),
        layers=verdict.layers(findings, portmap),
        portmap=portmap or NotTested(reason=NO_ROUTER),
        relays=relays.rows or NotTested(reason=_why_no_relay(findings)),
        duration_ms=duration_ms,
        servers=tuple(findings.servers),
        is_embedded=findings.is_embedded,
    )
    return replace(report, advice=advise(report))


def _why_no_relay(findings: verdict.Findings) -> str:
    return "our own server does not run" if findings.is_embedded else "no TURN server was given"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Who is asked.

    Attributes:
        uris: where they see us, over UDP.
        relays: whether they relay.
    """

    uris: Sequence[str] = ()
    relays: Sequence[IceServer] = ()


@asynccontextmanager
async def _servers(
    host: Host,
    interfaces: Sequence[Interface],
    options: ProbeOptions,
    inquiry: Inquiry,
    system_rng: random.Random,
) -> AsyncIterator[_Asked]:
    """The servers to ask; while the block lasts, one of our own on loopback where none is named.

    That one relays for a user with a password, made here, that nobody else gets to know; and for that one to its own
    relayed addresses only, as a server without ``allow_peers`` does on addresses of its own.
    """
    if options.servers:
        uris = [url for server in options.servers for url in server.urls if _is_asked_over_udp(ServerUri.parse(url))]
        yield _Asked(uris=uris, relays=options.servers)
        return
    listen = _loopback_addresses(interfaces, options.config)
    if not listen:
        yield _Asked()
        return
    user, password = (f"{system_rng.getrandbits(128):032x}" for _ in range(2))
    async with AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(
                serve(listen, users={user: password}, max_allocations=MAX_ALLOCATIONS, host=host)
            )
        except OSError as error:
            inquiry.note_failure("our own server", str(error))
            yield _Asked()
            return
        addresses = [each.address for each in server.listeners if each.transport == "udp"]
        urls = tuple(f"turn:{address}" for address in addresses)
        relay = IceServer(urls=urls, username=user, credential=password)
        yield _Asked(uris=[f"stun:{address}" for address in addresses], relays=(relay,))


def _is_asked_over_udp(uri: ServerUri) -> bool:
    return not uri.is_turn or (not uri.is_secure and uri.transport != "tcp")


def _loopback_addresses(interfaces: Sequence[Interface], config: Config) -> list[TransportAddress]:
    """One loopback address of each IP version that may be used, with any port; none where loopback is down."""
    found: dict[int, TransportAddress] = {}
    for interface in interfaces:
        for address in interface.addresses if interface.is_up else ():
            ip = ip_address(address.host)
            if ip.is_loopback and (config.ipv6 if ip.version == 6 else config.ipv4):
                found.setdefault(ip.version, TransportAddress(address.host, 0))
    return [found[version] for version in sorted(found)]


@asynccontextmanager
async def _candidates(
    host: Host, options: ProbeOptions, rng: random.Random | None
) -> AsyncIterator[Callable[[], Awaitable[tuple[str, ...]]]]:
    """Gather until what it gives is called, or to the end of the block: that waits a moment for the end of gathering,
    gives back what the agent holds, and returns SDP lines.
    """
    config = replace(options.config, servers=options.servers, gather_timeout_s=options.timeout_s)
    async with Agent(config, controlling=True, host=host, rng=rng) as agent:
        gathering = asyncio.ensure_future(agent.gather())

        async def lines() -> tuple[str, ...]:
            await asyncio.wait([gathering], timeout=GATHERING_GRACE_S)
            if gathering.done():
                gathering.result()
            found = tuple(candidate.to_sdp() for candidate in agent.local_candidates)
            await agent.aclose()
            return found

        try:
            yield lines
        finally:
            gathering.cancel()
