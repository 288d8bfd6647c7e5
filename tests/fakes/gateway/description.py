"""What does an Internet gateway say of itself? Its description, its services and their actions. Pure.

UPnP Device Architecture 1.1, 2.3 and 2.5; InternetGatewayDevice, WANIPConnection and WANPPPConnection 1 and 2,
WANIPv6FirewallControl 1.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.fakes.gateway.faults import Xml
from tests.fakes.gateway.state import State

__all__ = [
    "ACTIONS",
    "DESCRIPTION_PATH",
    "Action",
    "Service",
    "actions_of",
    "describe",
    "describe_service",
    "device_types",
    "service_types",
    "services",
]

DESCRIPTION_PATH = "/rootDesc.xml"
_DEVICE = "urn:schemas-upnp-org:device:"
_SERVICE = "urn:schemas-upnp-org:service:"
_ENTITIES = 9
_MANY = 10_000


class Action(NamedTuple):
    """An action: its arguments, in the order that is part of its definition.

    Attributes:
        inputs: names.
        outputs: names.
        since: the IGD version that has it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    since: int = 1


_KEY = ("NewRemoteHost", "NewExternalPort", "NewProtocol")
_ENTRY = (
    "NewInternalPort",
    "NewInternalClient",
    "NewEnabled",
    "NewPortMappingDescription",
    "NewLeaseDuration",
)

_CONNECTION = {
    "GetStatusInfo": Action((), ("NewConnectionStatus", "NewLastConnectionError", "NewUptime")),
    "GetExternalIPAddress": Action((), ("NewExternalIPAddress",)),
    "AddPortMapping": Action(_KEY + _ENTRY, ()),
    "AddAnyPortMapping": Action(_KEY + _ENTRY, ("NewReservedPort",), since=2),
    "DeletePortMapping": Action(_KEY, ()),
    "GetSpecificPortMappingEntry": Action(_KEY, _ENTRY),
    "GetGenericPortMappingEntry": Action(("NewPortMappingIndex",), _KEY + _ENTRY),
}

ACTIONS = {
    "WANIPConnection": _CONNECTION,
    "WANPPPConnection": _CONNECTION,
    "WANIPv6FirewallControl": {
        "GetFirewallStatus": Action((), ("FirewallEnabled", "InboundPinholeAllowed")),
        "AddPinhole": Action(
            ("RemoteHost", "RemotePort", "InternalClient", "InternalPort", "Protocol", "LeaseTime"), ("UniqueID",)
        ),
        "UpdatePinhole": Action(("UniqueID", "NewLeaseTime"), ()),
        "DeletePinhole": Action(("UniqueID",), ()),
    },
    "WANCommonInterfaceConfig": {},
    "Layer3Forwarding": {},
}
"""Service → action → what it is. The last two are there to be passed over."""


class Service(NamedTuple):
    """A service of the gateway.

    Attributes:
        kind: as in :data:`ACTIONS`.
        version: as its type says.
        path: of its control URL, as the gateway means it; unique.
        is_connected: of a WAN connection: whether it is the one that is.
    """

    kind: str
    version: int
    path: str
    is_connected: bool = True

    @property
    def type(self) -> str:
        """Its full name."""
        return f"{_SERVICE}{self.kind}:{self.version}"


def services(state: State) -> list[Service]:
    """All, in the order of the description."""
    options = state.options
    told = options.told_version
    if options.is_ppp:
        connection = Service("WANPPPConnection", 1, "/ctl/PPPConn")
    else:
        connection = Service("WANIPConnection", told, "/ctl/IPConn")
    found = [Service("Layer3Forwarding", 1, "/ctl/L3F"), Service("WANCommonInterfaceConfig", 1, "/ctl/CmnIfCfg")]
    if state.faults.soap.has_dead_twin:
        found.append(Service("WANPPPConnection", 1, "/ctl/dead", is_connected=False))
    found.append(connection)
    if options.igd_version >= 2 and options.has_pinholes:
        found.append(Service("WANIPv6FirewallControl", 1, "/ctl/IP6FCtl"))
    return found


def actions_of(state: State, kind: str) -> dict[str, Action]:
    """What a service of the gateway can do. WANPPPConnection has no version 2."""
    version = state.options.igd_version if kind == "WANIPConnection" else 1
    return {name: action for name, action in ACTIONS[kind].items() if action.since <= version}


def device_types(state: State) -> list[str]:
    """Of the three devices in one another."""
    version = state.options.told_version
    names = ("InternetGatewayDevice", "WANDevice", "WANConnectionDevice")
    return [f"{_DEVICE}{name}:{version}" for name in names]


def service_types(state: State) -> list[str]:
    """Of all services."""
    return list(dict.fromkeys(each.type for each in services(state)))


def describe(state: State) -> bytes:
    """The description, as :class:`Xml` has it."""
    xml = state.faults.http.xml
    text = _description(state)
    if xml is Xml.UTF8_BOM:
        return b"\xef\xbb\xbf" + text.encode()
    if xml is Xml.NOT_UTF8:
        return text.replace("A model", "Mod\u00e8le").encode("latin-1")
    if xml is Xml.EMPTY:
        return b""
    if xml is Xml.HTML:
        return b"<!DOCTYPE html>\n<html><head><title>Sign in<br></head><body>&nbsp;<p>Sign in</body></html>\n"
    if xml is Xml.TRUNCATED:
        return text[: len(text) // 2].encode()
    if xml is Xml.DEEP:
        return text.replace("<serviceList>", "<a>" * _MANY + "</a>" * _MANY + "<serviceList>", 1).encode()
    if xml is Xml.NO_SERVICE:
        return text.replace("InternetGatewayDevice", "MediaServer").replace("Connection:", "Printer:").encode()
    return text.encode()


def _description(state: State) -> str:
    root, wan, connection = device_types(state)
    found = {each.path: each for each in services(state)}
    http = state.faults.http
    outer = [found.pop("/ctl/L3F")]
    middle = [found.pop("/ctl/CmnIfCfg")]
    inner = list(found.values())
    base = "" if http.url_base is None else f"<URLBase>{http.url_base}</URLBase>"
    namespace = "" if http.xml is Xml.NO_NAMESPACE else ' xmlns="urn:schemas-upnp-org:device-1-0"'
    many = "".join(_service(state, Service("Printer", 1, f"/ctl/{i}")) for i in range(_MANY)) * (http.xml is Xml.HUGE)
    innermost = _device(state, connection, "3", inner, "", many)
    body = _device(state, root, "1", outer, _device(state, wan, "2", middle, innermost))
    version = "<specVersion><major>1</major><minor>1</minor></specVersion>"
    return f'<?xml version="1.0"?>\n{_dtd(http.xml)}<root{namespace}>{version}{base}{body}</root>\n'


def _dtd(xml: Xml) -> str:
    if xml is Xml.EXTERNAL_DTD:
        return '<!DOCTYPE root SYSTEM "http://192.0.2.99/root.dtd">\n'
    if xml is not Xml.ENTITY:
        return ""
    # Nine times ten to one, as in the "billion laughs".
    levels = [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, _ENTITIES + 1)]
    return f"<!DOCTYPE root [\n<!ENTITY e0 'ha!'>\n{''.join(levels)}\n]>\n"


def _device(state: State, kind: str, number: str, parts: list[Service], inside: str, extra: str = "") -> str:
    name = f"&e{_ENTITIES};" if state.faults.http.xml is Xml.ENTITY else f"A model {number}"
    listed = "".join(_service(state, each) for each in parts) + extra
    devices = f"<deviceList>{inside}</deviceList>" if inside else ""
    uuid = state.options.uuid if number == "1" else state.options.uuid[:-1] + number
    return (
        f"<device><deviceType>{kind}</deviceType><friendlyName>{name}</friendlyName>"
        f"<manufacturer>Nobody</manufacturer><modelName>{name}</modelName>"
        f"<UDN>uuid:{uuid}</UDN><serviceList>{listed}</serviceList>{devices}</device>"
    )


def _service(state: State, service: Service) -> str:
    is_ours = service.kind in ("WANIPConnection", "WANPPPConnection") and service.is_connected
    told = state.faults.http.control_url
    control = told if is_ours and told is not None else service.path
    return (
        f"<service><serviceType>{service.type}</serviceType>"
        f"<serviceId>urn:upnp-org:serviceId:{service.kind}1</serviceId>"
        f"<SCPDURL>/scpd/{service.kind}.xml</SCPDURL><controlURL>{control}</controlURL>"
        f"<eventSubURL>/evt/{service.kind}</eventSubURL></service>"
    )


def describe_service(state: State, kind: str) -> bytes | None:
    """The list of a service's actions (2.5); ``None``: there is no such service."""
    if kind not in {each.kind for each in services(state)}:
        return None
    listed = "".join(
        f"<action><name>{name}</name><argumentList>{_arguments(action)}</argumentList></action>"
        for name, action in actions_of(state, kind).items()
    )
    return (
        '<?xml version="1.0"?>\n<scpd xmlns="urn:schemas-upnp-org:service-1-0">'
        "<specVersion><major>1</major><minor>1</minor></specVersion>"
        f"<actionList>{listed}</actionList><serviceStateTable></serviceStateTable></scpd>\n"
    ).encode()


def _arguments(action: Action) -> str:
    return "".join(
        f"<argument><name>{name}</name><direction>{direction}</direction></argument>"
        for direction, names in (("in", action.inputs), ("out", action.outputs))
        for name in names
    )
