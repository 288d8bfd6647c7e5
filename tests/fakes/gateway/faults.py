"""What can be wrong with a gateway? A switch for each; all may be turned while it runs.

None of them is on in a new :class:`Faults`: such a gateway does what its specifications say. What happens at one moment
(a restart, an epoch that jumps, an announcement) is a method of :class:`tests.fakes.gateway.FakeGateway` instead.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

__all__ = [
    "LOCATIONS",
    "Delivery",
    "Faults",
    "HttpFaults",
    "MappingFaults",
    "ProtocolFaults",
    "ReplyFaults",
    "SoapFaults",
    "SsdpFaults",
    "Xml",
]

LOCATIONS = {
    "foreign": "http://192.0.2.99:5000/rootDesc.xml",
    "of the loopback": "http://127.0.0.1:5000/rootDesc.xml",
    "of the cloud's metadata": "http://169.254.169.254/latest/meta-data/",
    "null": "http://(null):49152/rootDesc.xml",
    "https": "https://192.168.1.1:5000/rootDesc.xml",
    "file": "file:///etc/passwd",
    "a name": "http://router.example/rootDesc.xml",
    "port 0": "http://192.168.1.1:0/rootDesc.xml",
    "port 65536": "http://192.168.1.1:65536/rootDesc.xml",
    "IPv6": "http://[2001:db8::99]:5000/rootDesc.xml",
    "IPv6 without an end": "http://[fe80::1:5000/rootDesc.xml",
    "a user": "http://user:password@192.168.1.1:5000/rootDesc.xml",
    "another host's user": "http://192.168.1.1:5000@192.0.2.99/rootDesc.xml",
    "a line break": "http://192.168.1.1:5000/a\x0bb.xml",
    "empty": "",
    "long": "http://192.168.1.1:5000/" + "a" * 8000,
}
"""For :attr:`SsdpFaults.location`: none of them may be followed by a client of the gateway at 192.168.1.1."""


class Delivery(Enum):
    """How an HTTP answer comes. The first four are what HTTP allows; of the others nothing may be used."""

    PLAIN = "with its Content-Length"
    CHUNKED = "in chunks"
    UNTIL_CLOSE = "without a length, by HTTP/1.0"
    INTERIM = "after 100 Continue"
    RESET = "the connection ends without a byte"
    HANG = "never"
    DRIP = "a byte a second"
    BANNER = "as another protocol's"
    ENDLESS_HEADER = "one header field after the other"
    ENDLESS_BODY = "300 MB that are announced"
    ENDLESS_CHUNKS = "one chunk after the other"
    BAD_CHUNK = "a chunk whose size is no number"
    CUT = "half of the body, then the end"
    LENGTH_SHORT = "Content-Length is half of it"
    LENGTH_LONG = "Content-Length is 100 more"
    LENGTH_TEXT = "Content-Length is a word"
    LENGTH_NEGATIVE = "Content-Length is negative"
    LENGTH_TWICE = "two different Content-Length"

    @property
    def is_readable(self) -> bool:
        """Whether a client gets the answer as it is meant."""
        return self in (Delivery.PLAIN, Delivery.CHUNKED, Delivery.UNTIL_CLOSE, Delivery.INTERIM)


class Xml(Enum):
    """What a description is made of."""

    GOOD = "as it should be"
    UTF8_BOM = "with a byte order mark before it, as some routers have"
    NO_NAMESPACE = "without the namespace, as some routers have it"
    EMPTY = "nothing"
    HTML = "a login page"
    TRUNCATED = "half of it"
    NOT_UTF8 = "bytes that are no UTF-8"
    DEEP = "10,000 elements in one another"
    HUGE = "10,000 services"
    ENTITY = "entities that make 3 GB of it"
    EXTERNAL_DTD = "a DTD of another host"
    NO_SERVICE = "a device that is no gateway"


@dataclass(kw_only=True)
class ReplyFaults:
    """How answers over UDP are spoilt.

    Attributes:
        is_silent: requests are not heard: no answer, no effect.
        lose: so many of the next answers are lost; their requests have had their effect. Counts down.
        delay_s: how long each answer takes.
        delays_s: how much longer the next ones take, the first first. Used up.
        reorder_s: of every two answers, the first takes so much longer.
        copies: how often each answer comes.
        from_host: the answer comes from there.
        from_port: likewise.
        length: the answer is cut to so many bytes, or filled up with zeros.
        garbage: comes instead of the answer.
    """

    is_silent: bool = False
    lose: int = 0
    delay_s: float = 0.0
    delays_s: list[float] = field(default_factory=list)
    reorder_s: float = 0.0
    copies: int = 1
    from_host: str | None = None
    from_port: int | None = None
    length: int | None = None
    garbage: bytes | None = None


@dataclass(kw_only=True)
class ProtocolFaults(ReplyFaults):
    """What is wrong with PCP, or with NAT-PMP.

    Attributes:
        results: codes for the next requests for mappings, the first first; 0 is none. Used up.
        result: the code for all of them, after that.
        delete_result: the code for all deletions.
        discovery_result: the code for what asks for no mapping: ANNOUNCE, the external address.
        result_lifetime_s: how long an error is said to hold; ``None``: 30 s or 30 min, as RFC 6887, 7.4 recommends.
        is_error_short: an error has 8 bytes (NAT-PMP), or the header alone (PCP).
        version: stands in the answer.
        opcode: likewise, with the bit that makes it an answer.
        is_nonce_wrong: the nonce in the answer is another (PCP).
        internal_port: stands in the answer.
        transport: the number of the transport protocol in the answer (PCP).
    """

    results: list[int] = field(default_factory=list)
    result: int = 0
    delete_result: int = 0
    discovery_result: int = 0
    result_lifetime_s: int | None = None
    is_error_short: bool = False
    version: int | None = None
    opcode: int | None = None
    is_nonce_wrong: bool = False
    internal_port: int | None = None
    transport: int | None = None

    def next_result(self, *, is_deletion: bool) -> int:
        """The code for a request for a mapping."""
        if is_deletion:
            return self.delete_result
        return self.results.pop(0) if self.results else self.result


@dataclass(kw_only=True)
class MappingFaults:
    """What a gateway makes of a request, by whatever protocol it comes.

    Attributes:
        external_port: this one is given, whatever was asked for (not by AddPortMapping, which cannot).
        external_host: this one is told, and not the true one: ``""`` (UPnP only; elsewhere 0.0.0.0), ``0.0.0.0``, a
            private one, one of a carrier.
        external_hosts: these are told in turn.
        lifetime_s: this is given, whatever was asked for; 0: the mapping is gone at once.
        told_lifetime_s: this is told, whatever was given.
        is_renewed_elsewhere: a renewal moves the mapping to another external port (not by AddPortMapping).
        has_no_effect: success is told, and there is no mapping.
    """

    external_port: int | None = None
    external_host: str | None = None
    external_hosts: list[str] = field(default_factory=list)
    lifetime_s: int | None = None
    told_lifetime_s: int | None = None
    is_renewed_elsewhere: bool = False
    has_no_effect: bool = False


@dataclass(kw_only=True)
class SsdpFaults(ReplyFaults):
    """What is wrong with the answers to M-SEARCH.

    Attributes:
        ignores_unicast: only what is multicast is answered.
        ignores_multicast: only what is unicast is answered.
        others: so many answers of other devices come before ours, each with a LOCATION of its own; 1000 are a flood.
        are_others_first: else they come after it.
        location: see :data:`LOCATIONS`.
        st: stands there instead of what was searched.
        usn: stands there.
        without: names of header fields that are missing, in capitals.
        status_line: the first line.
    """

    ignores_unicast: bool = False
    ignores_multicast: bool = False
    others: int = 0
    are_others_first: bool = True
    location: str | None = None
    st: str | None = None
    usn: str | None = None
    without: frozenset[str] = frozenset()
    status_line: str = "HTTP/1.1 200 OK"


@dataclass(kw_only=True)
class HttpFaults:
    """What is wrong with HTTP, and with the description that comes by it.

    Attributes:
        description: how the description comes.
        control: how the answers to actions come.
        status: of the answer to a request for the description.
        redirect: the description is said to be there (302).
        control_status: of the answers to actions, which then have no SOAP in them.
        xml: what the description is made of.
        control_url: of the WAN connection, instead of the right one: absolute, relative, of another host.
        url_base: is told, and control URLs are relative to it.
    """

    description: Delivery = Delivery.PLAIN
    control: Delivery = Delivery.PLAIN
    status: int = 200
    redirect: str | None = None
    control_status: int = 200
    xml: Xml = Xml.GOOD
    control_url: str | None = None
    url_base: str | None = None


@dataclass(kw_only=True)
class SoapFaults:
    """What is wrong with UPnP's actions.

    Attributes:
        errors: action → the code that it always gives; ``""`` is any action.
        errors_once: action → codes for its next calls, the first first; 0 is none. Used up.
        permanent_only: the code that AddPortMapping and its like give for any lease but 0: 725, and 402 of some.
        same_ports_only: 724, unless both ports are the same.
        wildcard_only: 727, unless the external port is 0, which no client of ours asks for.
        status: of the connection.
        has_dead_twin: before the WAN connection there is another one (PPP), which is not connected.
        arguments: output arguments that stand in the answer instead of the right ones.
        without: output arguments that are missing.
        body: stands in the answer instead of SOAP.
        forgets_delete: DeletePortMapping says yes, and the mapping stays.
    """

    errors: dict[str, int] = field(default_factory=dict)
    errors_once: dict[str, list[int]] = field(default_factory=dict)
    permanent_only: int | None = None
    same_ports_only: bool = False
    wildcard_only: bool = False
    status: str = "Connected"
    has_dead_twin: bool = False
    arguments: dict[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    body: bytes | None = None
    forgets_delete: bool = False

    def next_error(self, action: str) -> int:
        """The code for a call; 0: none."""
        once = self.errors_once.get(action) or self.errors_once.get("")
        if once:
            return once.pop(0)
        return self.errors.get(action, self.errors.get("", 0))


@dataclass(kw_only=True)
class Faults:
    """All switches.

    Attributes:
        closed_ports: nothing listens there: 5351 (PCP and NAT-PMP), 1900 (SSDP), the HTTP port.
        pcp: see there, as the following.
    """

    closed_ports: set[int] = field(default_factory=set)
    pcp: ProtocolFaults = field(default_factory=ProtocolFaults)
    natpmp: ProtocolFaults = field(default_factory=ProtocolFaults)
    mapping: MappingFaults = field(default_factory=MappingFaults)
    ssdp: SsdpFaults = field(default_factory=SsdpFaults)
    http: HttpFaults = field(default_factory=HttpFaults)
    soap: SoapFaults = field(default_factory=SoapFaults)
