"""What can be configured, and why is each default what it is?

One frozen object travels whole. Times are seconds. Every default names its RFC sentence or its reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from iceagent.candidate import Candidate, CandidateType
from iceagent.errors import UsageError
from iceagent.net.address import IPAddress, canonical_host
from iceagent.net.host import Interface, Proxy
from relay.account import TurnCredentials
from relay.uri import BadUri, ServerUri

if TYPE_CHECKING:
    import ssl

__all__ = ["NOMINATION_WAIT_S", "Config", "IceServer"]

# RFC 7675, 5.1 lets a check be waited for by the estimated round trip and an allowance, and names no figure; one that
# leaves at its latest is given this long to be answered.
_ANSWER_S = 2.0

# How long a valid pair whose local or remote candidate is of this type waits for a better one before it is nominated.
# Host pairs do not wait: nothing better can come. Reflexive pairs are usually followed by a host pair within one
# round trip of the slower path; a relay pair by a reflexive one within a lost check and its repetition (500 ms, RFC
# 8445, 14.3) and a round trip.
NOMINATION_WAIT_S: Mapping[CandidateType, float] = {
    CandidateType.HOST: 0.0,
    CandidateType.PEER_REFLEXIVE: 0.2,
    CandidateType.SERVER_REFLEXIVE: 0.2,
    CandidateType.RELAYED: 1.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IceServer:
    """A server, as W3C's RTCIceServer has it.

    Attributes:
        urls: ``stun:`` URIs (RFC 7064), all of which are asked; ``turn:`` and ``turns:`` URIs (RFC 7065), ways
            to one service: one allocation is made, by the first of them that gives one. One text alone is taken for
            one URI.
        username: for TURN; 1 to 508 bytes of UTF-8 (RFC 8489, 14.3).
        credential: for TURN, the password; not empty (RFC 8265, 4.2).
        credentials: gives both, instead; called at the beginning and again before the lifetime ends that it gave.
            Where they are refused, or it raises, or takes more than 10 s, the agent goes on without that server, and
            says so.

    Raises:
        UsageError: a URI is none, a TURN server has neither user name and credential nor ``credentials``, or both;
            no message quotes a credential. RFC 8656, 7.2 lets a server do without them; none that relays for
            strangers does.
    """

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)
    credentials: Callable[[], Awaitable[TurnCredentials]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "urls", _texts("urls", self.urls, '("turn:host",)'))
        uris = [_uri(url) for url in self.urls]
        for name, text in (("username", self.username), ("credential", self.credential)):
            _check_account(name, text)
        if self.credentials is not None and not callable(self.credentials):
            raise UsageError(f'"credentials" is no async function, but of type {_type_of(self.credentials)}')
        given = [name for name in ("username", "credential") if getattr(self, name) is not None]
        if given and self.credentials is not None:
            raise UsageError(f'"credentials" gives user name and password: leave "{given[0]}" out, or it')
        if len(given) == 1:
            raise UsageError(f'"{given[0]}" is given alone: username and credential belong together')
        needs_account = next((url for url, uri in zip(self.urls, uris, strict=True) if uri.is_turn), None)
        if needs_account is not None and not given and self.credentials is None:
            raise UsageError(f"{needs_account} has no username and credential, and a TURN server asks for them")

    @property
    def is_turn(self) -> bool:
        """Whether one of its URIs is a TURN server's."""
        return any(ServerUri.parse(url).is_turn for url in self.urls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set about an agent.

    Raises:
        UsageError: a value is out of its range (the message has the value and the limit), of another type, or
            contradicts another one.
    """

    # --- gathering -----------------------------------------------------------------------------------------------
    servers: tuple[IceServer, ...] = ()
    components: int = 1
    """1 … 256; WebRTC bundles use one."""
    ipv4: bool = True
    ipv6: bool = True
    loopback: bool = False
    """Gather and accept loopback addresses. RFC 8445, 5.1.1.1: they MUST NOT be included; for tests on one machine."""
    bind_hosts: tuple[str, ...] = ()
    """Gather on these addresses only; empty: on every address of every interface."""
    interface_filter: Callable[[Interface], bool] | None = None
    address_filter: Callable[[IPAddress], bool] | None = None
    port_range: tuple[int, int] | None = None
    """First and last local port; ``None``: the system's ephemeral ports."""
    external_addresses: Mapping[str, str | None] = field(default_factory=dict)
    """Public address → local address (``None``: every base of that family), for hosts behind 1:1 NAT."""
    portmap: bool = True
    """Have routers map our ports (PCP, NAT-PMP, UPnP), where an address is not a global one: such a candidate works
    whatever the peer's NAT does. Never with ``relay_only`` or ``lite``.
    """
    mdns: bool = False
    """Publish ``.local`` names in place of host addresses, and hide related addresses
    (draft-ietf-mmusic-mdns-ice-candidates).
    """
    resolve_mdns: bool = False
    """Resolve the peer's ``.local`` candidates; without it they are refused with that reason."""
    relay_only: bool = False
    """Connect through relays and no other way, and tell nobody our addresses: no socket but to TURN servers (and name
    servers) is opened, related addresses are 0.0.0.0:9, or [::]:9 with IPv6 (RFC 8445, 5.1.1.2 leaves it to policy, RFC
    8839, 5.1 has the form). Needs a TURN server.
    """
    proxy: Proxy | None = None
    """For TURN over TCP and TLS, by HTTP CONNECT; ``None``: what ``https_proxy``, ``all_proxy`` and ``no_proxy`` in the
    environment say.
    """
    ssl_context: ssl.SSLContext | None = None
    """How TLS to TURN servers verifies their certificates; ``None``: by the system's authorities, with the application
    protocol ``stun.turn`` (RFC 7443).
    """
    gather_timeout_s: float = 5.0
    """A gathering is done after this time at worst; a server that answers later still gives its candidate."""

    # --- sockets -------------------------------------------------------------------------------------------------
    dscp: int = 0
    """RFC 8445, 7.2.3: checks carry the marking of the data."""
    mark: int | None = None
    device: str | None = None
    receive_buffer: int | None = 4 * 2**20
    """Linux's default of 212,992 bytes holds some 280 small datagrams; the kernel caps this by ``rmem_max``."""

    coalesce_s: float = 0.000_01
    """A datagram that follows another within this time waits for the rest of its burst, until the loop comes round: all
    of it then leaves in few calls, which cost a tenth as much for each. 0: every one leaves at once. The first of a
    burst always does, and so does what is no ``bytes`` or has more than 8,952. Between the socket and the wire a train
    may count as one packet: ``tc netem`` drops it as a whole, as a policer does, a limit on packets per second counts
    it once, and a filter on packet length sees another length.
    """

    # --- checks --------------------------------------------------------------------------------------------------
    lite: bool = False
    """Be a lite agent (RFC 8445, 2.5): host candidates only, answer checks, never send any."""
    ta_s: float = 0.050
    """RFC 8445, 14.2: the default SHOULD be 50 ms, and MUST NOT be below 5 ms. The larger of both sides' counts."""
    burst: int = 5
    """Checks that may leave at once before Ta paces them; 1 is RFC 8445, 6.1.4.2 to the letter. At most 5."""
    rto_s: float = 0.500
    """RFC 8445, 14.3: agents MUST NOT use an RTO smaller than 500 ms."""
    ceiling: tuple[float, int] = (200.0, 20)
    """Checks and queries to servers per second, and burst, of all agents of one host object together. RFC 8445, 14.2:
    all transactions of all agents MUST NOT be sent more often than once every 5 ms. The first agent's value counts for
    all later ones of its host.
    """
    early_checks_s: tuple[float, ...] = (0.100, 0.200, 0.400)
    """New checks on a pair that has not answered, and new queries to a STUN server that has not, so long after the
    first one; at most three. Empty: none.
    """
    openers: bool = True
    """Before the first check to a reflexive address, send a packet that opens our own NAT and dies before it
    reaches the peer's; the check follows 10 ms later (``iceagent/nat/openers.py``). Many a Linux router gives our flow
    another port than the one we signalled if the peer's packet comes first, and the pair never works.
    """
    reroll: bool = True
    """When nothing beyond our NAT has answered for 1 s (controlling: 1.5 s), open another socket, once, and tell the
    peer its reflexive address: the flows of the first may be spoilt (``iceagent/core/reroll.py``). Needs ``openers``,
    ``late_candidates``, and a peer that trickles.
    """
    route_order: bool = True
    """Check first, for each remote address, from the base the kernel would route it from (RFC 8445, 6.1.4.2 goes by
    priority alone).
    """
    max_pairs: int = 100
    """RFC 8445, 6.1.2.5: the default limit is 100, "but the value MUST be configurable"."""
    max_peer_reflexive: int = 32
    """Remote peer-reflexive candidates; each costs a pair and needs an authenticated request."""
    remote_filter: Callable[[Candidate], bool] | None = None
    """Refuse remote candidates for which this is false."""
    late_candidates: bool = True
    """Send candidates found after end-of-candidates. RFC 8838, 13 ends the generation there."""

    # --- nomination ----------------------------------------------------------------------------------------------
    nomination_wait_s: Mapping[CandidateType, float] = field(default_factory=lambda: NOMINATION_WAIT_S)
    renomination: bool = True
    """Nominate again when a better pair becomes valid. RFC 8445, 8.1.1: once per component."""
    keep_pairs: bool = True
    """Keep the other valid pairs after nomination. RFC 8445, 8.3.1 frees them."""

    # --- life ----------------------------------------------------------------------------------------------------
    pac_timeout_s: float = 39.5
    """RFC 8863, 4: RECOMMENDED for the PAC timer is the timeout of a check with all its repetitions, 39.5 s."""
    consent_interval_s: float = 5.0
    """RFC 7675, 5.1: a check every 5 s, each time varied by 0.8 … 1.2."""
    consent_slack_s: float = 0.75
    """How far a consent check may move within its 0.8 … 1.2, to leave together with those of other agents of the same
    host object, 64 at most; 0: not at all. A process that wakes up once for 30 checks pays a third of what 30 wake-ups
    cost. The checks of two hundred agents that follow nobody share 1.2 such moments a second. Who sees two of them can
    tell that they belong to one process.
    """
    consent_follows: bool = True
    """Send a consent check together with the answer to the peer's, where 0.8 of the interval are over. It saves one
    wake-up of three on either side, and on a phone one of three times that the radio has to come to life. Two agents of
    one process meet by ``consent_slack_s`` as well.
    """
    liveness: bool = True
    """Doubt a path on which what should come back does not, ask it and those that stand by, and leave it for one that
    answers (``relay/upgrade.py`` has the times). Off: only the end of consent ends a path, after 30 s.
    """
    standby: bool = True
    """Keep two more pairs warm while data flows: a check every 15 s on each, so that one of them can take over at once.
    Off: what takes over has to be found first.
    """
    mirror: bool = True
    """While a path is in doubt, send data over the one that stands by as well, to a peer that knows path messages: for
    1.5 s, 64 datagrams or 64 kB an episode at most. The peer's application gets such a datagram twice.
    """
    path_messages: bool = True
    """Tell a peer that knows them (``docs/path-messages.md``) over any path that works what would need signalling
    otherwise: new and withdrawn candidates, when to check, which pair to nominate, that we close.
    """
    relay_first: bool = False
    """Begin on a relay, as soon as there is one, and move when a direct pair is valid. Off: on whatever works first."""
    goodbye_s: float = 0.3
    """So long :meth:`iceagent.Agent.aclose` waits at most for the peer to hear that we close: a round trip mostly, and
    not at all where there is no path or the peer knows no path messages.
    """
    revocation_s: float = 0.0
    """So long :meth:`iceagent.Agent.aclose` waits for a check of a peer that knows no path messages, to answer it with
    403 (RFC 7675, 5.2); there is one every 4 to 6 s. 0: such a peer learns when consent ends, after 30 s.
    """
    consent_timeout_s: float = 30.0
    """RFC 7675, 5.1: consent expires after 30 s. It must leave a check at its latest two seconds to be answered:
    with an interval above 12 s a single lost one can end consent.
    """

    def __post_init__(self) -> None:
        self._check_types()
        self._check_servers()
        _between("components", self.components, 1, 256)
        _between("ta_s", self.ta_s, 0.005, 60.0)
        _between("burst", self.burst, 1, 5)
        _between("ceiling", self.ceiling[0], 1.0, 1e6)
        _between("ceiling", self.ceiling[1], 1, 1e6)
        _between("rto_s", self.rto_s, 0.5, 60.0)
        _between("max_pairs", self.max_pairs, 1, 10_000)
        _between("max_peer_reflexive", self.max_peer_reflexive, 0, 10_000)
        _between("dscp", self.dscp, 0, 63)
        _between("coalesce_s", self.coalesce_s, 0.0, 1.0)
        # RFC 7675, 5.1: never less than 4 s between checks, which vary by 0.8 … 1.2.
        _between("consent_interval_s", self.consent_interval_s, 5.0, (30.0 - _ANSWER_S) // 0.12 / 10)
        if self.consent_slack_s:
            _between("consent_slack_s", self.consent_slack_s, 0.01, 5.0)
        _between("consent_timeout_s", self.consent_timeout_s, 1.2 * self.consent_interval_s + _ANSWER_S, 30.0)
        _between("goodbye_s", self.goodbye_s, 0.0, 10.0)
        _between("revocation_s", self.revocation_s, 0.0, 30.0)
        if len(self.early_checks_s) > 3:
            raise UsageError(f"early_checks_s has {len(self.early_checks_s)} times, at most 3 are allowed")
        _between("gather_timeout_s", self.gather_timeout_s, 0.0, 3600.0)
        _between("pac_timeout_s", self.pac_timeout_s, 0.0, 3600.0)
        if self.port_range is not None:
            ports: Any = self.port_range
            if not isinstance(ports, tuple | list) or len(ports) != 2:
                raise UsageError(f"port_range is {self.port_range!r}, two ports are expected: (first, last)")
            low, high = self.port_range
            _between("port_range", low, 1, 65535)
            _between("port_range", high, 1, 65535)
            if high < low:
                raise UsageError(f"port_range is {low} to {high}: the last port is below the first")
        for host in (*self.bind_hosts, *self.external_addresses, *filter(None, self.external_addresses.values())):
            try:
                canonical_host(host)
            except ValueError:
                raise UsageError(f"{host!r} is not an IP address") from None

    def _check_types(self) -> None:
        """Switches and numbers; what has a shape of its own is checked where that is read."""
        for each in fields(self):
            value, is_bool = getattr(self, each.name), isinstance(getattr(self, each.name), bool)
            if each.type == "bool" and not is_bool:
                raise UsageError(f"{each.name} is of type {_type_of(value)}, True or False is expected")
            if each.type in ("int", "float") and (is_bool or not isinstance(value, int | float)):
                raise UsageError(f"{each.name} is of type {_type_of(value)}, a number is expected")

    def _check_servers(self) -> None:
        servers: Any = self.servers
        if isinstance(servers, IceServer):
            raise UsageError("servers is one IceServer, a tuple of them is expected: servers=(server,)")
        if not isinstance(servers, tuple | list):
            raise UsageError(f"servers is of type {_type_of(servers)}, a tuple of IceServer is expected")
        for number, server in enumerate(servers, 1):
            if not isinstance(server, IceServer):
                hint = f"IceServer(urls=({server!r},))" if isinstance(server, str) else "see parse_ice_servers"
                raise UsageError(f"servers, entry {number}: of type {_type_of(server)}, no IceServer; {hint}")
        object.__setattr__(self, "servers", tuple(servers))
        if self.relay_only and self.lite:
            raise UsageError("relay_only and lite contradict each other: a lite agent has host candidates only")
        if self.relay_only and not any(server.is_turn for server in servers):
            raise UsageError("relay_only needs a TURN server: servers has none")
        if self.proxy is not None and not isinstance(self.proxy, Proxy):
            raise UsageError(f"proxy is of type {_type_of(self.proxy)}; Proxy.parse(text) reads a URL")
        # An SSLContext, without loading ssl for it.
        if self.ssl_context is not None and not hasattr(self.ssl_context, "wrap_bio"):
            raise UsageError(f"ssl_context is of type {_type_of(self.ssl_context)}, an ssl.SSLContext is expected")


def _texts(name: str, value: Any, example: str) -> tuple[str, ...]:
    """Several texts; one is taken for one of them, as W3C's ``urls`` are."""
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, tuple | list):
        raise UsageError(f'"{name}" is of type {_type_of(value)}, a tuple of texts is expected, such as {example}')
    for text in found:
        if not isinstance(text, str):
            raise UsageError(f'"{name}" has something of type {_type_of(text)} in it, texts are expected: {example}')
    if not found:
        raise UsageError(f'"{name}" is empty: one text at least is expected, such as {example}')
    return tuple(found)


def _uri(url: str) -> ServerUri:
    try:
        return ServerUri.parse(url)
    except BadUri as error:
        raise UsageError(str(error)) from error


def _check_account(name: str, text: Any) -> None:
    if text is None:
        return
    if not isinstance(text, str):
        raise UsageError(f'"{name}" is no text (str), but of type {_type_of(text)}')
    if not text:
        raise UsageError(f'"{name}" is empty')


def _type_of(value: object) -> str:
    return type(value).__name__


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}, allowed is {low:g} to {high:g}")
