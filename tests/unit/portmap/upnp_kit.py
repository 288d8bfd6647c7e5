"""A UPnP client in virtual time, and a router made by hand for it to talk to."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from portmap.events import Fetch
from portmap.upnp import UpnpClient
from portmap.values import Gateway, MapRequest

START = 1000.0
HOST = "192.168.1.10"
GATEWAY = Gateway(host="192.168.1.1", interface="eth0", index=2, source=HOST, network="192.168.1.0/24")
BASE = TransportAddress(HOST, 40000)
HOST_6 = "2001:db8:1::10"
ROUTER_6 = "2001:db8:1::1"
GATEWAY_6 = Gateway(host="fe80::1", interface="eth0", index=2, source=HOST_6, network="2001:db8:1::/64")
BASE_6 = TransportAddress(HOST_6, 40000)
EXTERNAL = "11.22.33.4"
ROUTER = TransportAddress(GATEWAY.host, 1900)
GROUP = TransportAddress("239.255.255.250", 1900)
IGD = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"

E = TypeVar("E", bound=Event)


def request(
    port: int = 5000, *, external_port: int = 0, lifetime_s: int = 3600, description: str = "test"
) -> MapRequest:
    internal = TransportAddress(HOST, port)
    return MapRequest(
        transport="udp",
        internal=internal,
        external_port=external_port,
        lifetime_s=lifetime_s,
        description=description,
    )


def about(value: float) -> Any:
    """Within a microsecond."""
    return pytest.approx(value, abs=1e-6)


def request_6(port: int = 5000, host: str = HOST_6) -> MapRequest:
    return MapRequest(transport="udp", internal=TransportAddress(host, port), external_port=0)


def reply(location: str = "http://192.168.1.1:5000/rootDesc.xml", target: str = IGD) -> bytes:
    """An answer to a search, as miniupnpd writes it."""
    lines = (
        "HTTP/1.1 200 OK",
        "CACHE-CONTROL: max-age=120",
        f"ST: {target}",
        f"USN: uuid:73616d61-6a6b-7473-0a::{target}",
        "EXT:",
        "SERVER: Debian/12 UPnP/1.1 MiniUPnPd/2.3.1",
        f"LOCATION: {location}",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def service_xml(kind: str, control: str) -> str:
    return (
        f"<service><serviceType>urn:schemas-upnp-org:service:{kind}</serviceType>"
        f"<serviceId>urn:upnp-org:serviceId:x</serviceId><SCPDURL>/x.xml</SCPDURL>"
        f"<controlURL>{control}</controlURL><eventSubURL>/evt</eventSubURL></service>"
    )


def description(*services: tuple[str, str], base: str = "") -> bytes:
    """A description of an IGD with these services, three devices deep as they are."""
    inner = "".join(service_xml(kind, control) for kind, control in services)
    url_base = f"<URLBase>{base}</URLBase>" if base else ""
    return (
        '<?xml version="1.0"?>\n<root xmlns="urn:schemas-upnp-org:device-1-0">'
        f"<specVersion><major>1</major><minor>0</minor></specVersion>{url_base}"
        f"<device><deviceType>{IGD}</deviceType><friendlyName>Router of R&amp;D</friendlyName><deviceList><device>"
        "<deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><deviceList><device>"
        "<deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>"
        f"<serviceList>{inner}</serviceList></device></deviceList></device></deviceList></device></root>"
    ).encode()


def answer(action: str, **values: object) -> bytes:
    """What a service says to an action that it did."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action}Response xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">{inner}'
        f"</u:{action}Response></s:Body></s:Envelope>"
    ).encode()


def fault(code: int, words: str = "Something") -> bytes:
    """What it says to one that it did not."""
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>'
        "<faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>'
        f"<errorDescription>{words}</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>"
    ).encode()


@dataclass
class Rule:
    """A mapping in a router."""

    host: str
    port: int
    expires_at: float | None
    description: str = ""
    enabled: int = 1


@dataclass
class Router:
    """An IGD, with switches.

    Attributes:
        version: of its WANIPConnection.
        port: of its HTTP.
        external: what it says its address is.
        location: what it answers to searches.
        replies: the same in full: when, from where, what; ``None``: its usual answer to a unicast search.
        page: its description; ``None``: its usual one.
        rules: its mappings, by outside port.
        pinholes: the same for IPv6, by number.
        faults: action → the codes that it says one after the other, before it works.
        always: action → the code that it says every time.
        has_effect: what it grants is there.
        longest_lease: it makes leases no longer.
        delay_s: of every HTTP answer.
        deaf: actions that it does not answer; ``GET`` for its description.
        reason: why it cannot be connected to.
    """

    version: int = 1
    port: int = 5000
    external: str = EXTERNAL
    location: str = ""
    replies: list[tuple[float, TransportAddress, bytes]] | None = None
    is_silent: bool = False
    page: bytes | None = None
    rules: dict[int, Rule] = field(default_factory=dict)
    pinholes: dict[int, Rule] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)
    always: dict[str, int] = field(default_factory=dict)
    has_effect: bool = True
    only_permanent: bool = False
    longest_lease: int = 10**9
    delay_s: float = 0.005
    deaf: set[str] = field(default_factory=set)
    reason: str = ""
    is_6: bool = False

    def search(self, transmit: Transmit) -> list[tuple[float, TransportAddress, bytes]]:
        """What it answers to a search."""
        if self.is_silent:
            return []
        is_unicast = transmit.destination.host in (GATEWAY.host, GATEWAY_6.host)
        if self.replies is not None:
            # All of them to the first search for IGD:1, wherever that goes.
            replies, self.replies = self.replies, []
            return replies
        if not is_unicast:
            return []
        host = f"[{ROUTER_6}]" if self.is_6 else GATEWAY.host
        location = self.location or f"http://{host}:{self.port}/rootDesc.xml"
        return [(0.003, transmit.destination, reply(location))]

    def fetch(self, fetch: Fetch, now: float) -> tuple[int, bytes] | str | None:
        """What it answers to an HTTP request: a response, the reason of a failure, or nothing."""
        if self.reason or fetch.server.port != self.port:
            return self.reason or "Connection refused"
        if fetch.method == "GET":
            return None if "GET" in self.deaf else (200, self.page or self.usual_page())
        action = action_of(fetch)
        if action in self.deaf:
            return None
        codes = self.faults.get(action, [])
        code = codes.pop(0) if codes else self.always.get(action, 0)
        if not code:
            code_or_body = getattr(self, f"do_{action}")(arguments_of(fetch), now)
            if isinstance(code_or_body, bytes):
                return 200, code_or_body
            code = code_or_body
        return 500, fault(code)

    def usual_page(self) -> bytes:
        if self.is_6:
            return description(("WANIPv6FirewallControl:1", "/ctl/IP6FCtl"))
        return description((f"WANIPConnection:{self.version}", "/ctl/IPConn"))

    def do_GetExternalIPAddress(self, _: dict[str, str], __: float) -> bytes:
        return answer("GetExternalIPAddress", NewExternalIPAddress=self.external)

    def do_GetStatusInfo(self, _: dict[str, str], __: float) -> bytes:
        return answer("GetStatusInfo", NewConnectionStatus="Connected", NewLastConnectionError="", NewUptime=5)

    def do_GetSpecificPortMappingEntry(self, arguments: dict[str, str], now: float) -> bytes | int:
        rule = self.rule_at(int(arguments["NewExternalPort"]), now)
        if rule is None:
            return 714
        left = 0 if rule.expires_at is None else max(int(rule.expires_at - now), 1)
        return answer(
            "GetSpecificPortMappingEntry",
            NewInternalPort=rule.port,
            NewInternalClient=rule.host,
            NewEnabled=rule.enabled,
            NewPortMappingDescription=rule.description,
            NewLeaseDuration=left,
        )

    def do_GetGenericPortMappingEntry(self, arguments: dict[str, str], now: float) -> bytes | int:
        index = int(arguments["NewPortMappingIndex"])
        if index >= len(self.rules):
            return 713
        port, rule = list(self.rules.items())[index]
        return answer(
            "GetGenericPortMappingEntry",
            NewRemoteHost="",
            NewExternalPort=port,
            NewProtocol="UDP",
            NewInternalPort=rule.port,
            NewInternalClient=rule.host,
            NewEnabled=1,
            NewPortMappingDescription=rule.description,
            NewLeaseDuration=0 if rule.expires_at is None else int(rule.expires_at - now),
        )

    def do_AddPortMapping(self, arguments: dict[str, str], now: float) -> bytes | int:
        port = int(arguments["NewExternalPort"])
        rule = self.rule_at(port, now)
        if rule is not None and rule.host != arguments["NewInternalClient"]:
            return 718
        return self.add(port, arguments, now) or answer("AddPortMapping")

    def do_AddAnyPortMapping(self, arguments: dict[str, str], now: float) -> bytes | int:
        port = int(arguments["NewExternalPort"])
        rule = self.rule_at(port, now)
        if rule is not None and rule.host != arguments["NewInternalClient"]:
            port += 1
        return self.add(port, arguments, now) or answer("AddAnyPortMapping", NewReservedPort=port)

    def do_DeletePortMapping(self, arguments: dict[str, str], now: float) -> bytes | int:
        return answer("DeletePortMapping") if self.rules.pop(int(arguments["NewExternalPort"]), None) else 714

    def do_AddPinhole(self, arguments: dict[str, str], now: float) -> bytes | int:
        number = len(self.pinholes) + 1
        expires_at = now + int(arguments["LeaseTime"])
        self.pinholes[number] = Rule(arguments["InternalClient"], int(arguments["InternalPort"]), expires_at)
        return answer("AddPinhole", UniqueID=number)

    def do_UpdatePinhole(self, arguments: dict[str, str], now: float) -> bytes | int:
        rule = self.pinholes.get(int(arguments["UniqueID"]))
        if rule is None:
            return 704
        rule.expires_at = now + int(arguments["NewLeaseTime"])
        return answer("UpdatePinhole")

    def do_DeletePinhole(self, arguments: dict[str, str], now: float) -> bytes | int:
        return answer("DeletePinhole") if self.pinholes.pop(int(arguments["UniqueID"]), None) else 704

    def add(self, port: int, arguments: dict[str, str], now: float) -> int:
        lease = int(arguments["NewLeaseDuration"])
        if self.only_permanent and lease:
            return 725
        expires_at = now + min(lease, self.longest_lease) if lease else None
        if self.has_effect:
            host, inside = arguments["NewInternalClient"], int(arguments["NewInternalPort"])
            self.rules[port] = Rule(host, inside, expires_at, arguments["NewPortMappingDescription"])
        return 0

    def rule_at(self, port: int, now: float) -> Rule | None:
        rule = self.rules.get(port)
        if rule is not None and rule.expires_at is not None and now >= rule.expires_at:
            del self.rules[port]
            return None
        return rule


def action_of(fetch: Fetch) -> str:
    return dict(fetch.headers)["SOAPAction"].strip('"').partition("#")[2]


def arguments_of(fetch: Fetch) -> dict[str, str]:
    return dict(re.findall(r"<(\w+)>([^<]*)</\1>", fetch.body.decode()))


class Course:
    """A client and its router in virtual time.

    Attributes:
        events: when, and what; without fetches and drops.
        fetches: when, and what.
        transmits: when, and what.
        drops: the reasons.
    """

    def __init__(self, router: Router | None = None, gateway: Gateway = GATEWAY) -> None:
        self.router = router or Router()
        self.now = START
        base = BASE if gateway.version == 4 else BASE_6
        self.client = UpnpClient(gateway, base, Random(1), Random(2))
        self.events: list[tuple[float, Event]] = []
        self.fetches: list[tuple[float, Fetch]] = []
        self.transmits: list[tuple[float, Transmit]] = []
        self.drops: list[str] = []
        self._base = base
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def act(self, method: Callable[..., None], *args: object) -> None:
        """Call a command; the time is added, unless it takes none."""
        method(*args, self.now)
        self.drain()

    def discover(self) -> None:
        """Search until that is decided."""
        self.act(self.client.discover)
        self.run(3.0)

    def map(self, key: int = 1, wanted: MapRequest | None = None, seconds: float = 0.1) -> None:
        """Map, and let time pass."""
        self.act(self.client.map, key, wanted or request())
        self.run(seconds)

    def receive(self, data: bytes, source: TransportAddress = ROUTER) -> None:
        """A datagram arrives."""
        self.act(self.client.handle_datagram, Datagram(self._base, source, data))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        for _ in range(20_000):
            deadline = self.client.poll_timeout()
            arrival = self._coming[0][0] if self._coming else None
            at = min((each for each in (deadline, arrival) if each is not None), default=end + 1)
            if at > end:
                break
            self.now = max(self.now, at)
            if arrival is not None and arrival <= self.now:
                heapq.heappop(self._coming)[2]()
            else:
                self.client.handle_timeout(self.now)
            self.drain()
        else:
            raise AssertionError("it never rests")
        self.now = end

    def drain(self) -> None:
        """Take everything out, and let the router answer."""
        while (transmit := self.client.poll_transmit()) is not None:
            self.transmits.append((self.now, transmit))
            for delay_s, source, data in self.router.search(transmit):
                self._later(delay_s, self._arrival(source, data))
        while (event := self.client.poll_event()) is not None:
            if isinstance(event, Fetch):
                self.fetches.append((self.now, event))
                self._later(self.router.delay_s, self._completion(event))
            elif isinstance(event, PacketDropped):
                self.drops.append(event.reason)
            else:
                self.events.append((self.now, event))

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind, in order."""
        return [event for _, event in self.events if isinstance(event, kind)]

    def take(self) -> list[Event]:
        """The events so far, which are forgotten."""
        events = [event for _, event in self.events]
        self.events.clear()
        return events

    def actions(self) -> list[str]:
        """What was asked by HTTP so far, which is forgotten."""
        names = [action_of(fetch) if fetch.method == "POST" else fetch.target for _, fetch in self.fetches]
        self.fetches.clear()
        return names

    def _arrival(self, source: TransportAddress, data: bytes) -> Callable[[], None]:
        return lambda: self.client.handle_datagram(Datagram(self._base, source, data), self.now)

    def _completion(self, fetch: Fetch) -> Callable[[], None]:
        def complete() -> None:
            result = self.router.fetch(fetch, self.now)
            if isinstance(result, str):
                self.client.handle_failure(fetch.number, result, self.now)
            elif result is not None:
                self.client.handle_response(fetch.number, result[0], (), result[1], self.now)

        return complete

    def _later(self, delay_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (self.now + delay_s, next(self._order), what))
