"""What would a UPnP Internet gateway answer to this HTTP request? UPnP Device Architecture 1.1, 2.1 and 3.2. Pure.

An action's arguments must all be there, in the order of its definition, and nothing else. What the actions do is in
``actions.py``.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from iceagent.net.address import TransportAddress
from tests.fakes.gateway.actions import UpnpError, perform
from tests.fakes.gateway.description import (
    DESCRIPTION_PATH,
    Action,
    Service,
    actions_of,
    describe,
    describe_service,
    services,
)
from tests.fakes.gateway.http import HttpReply
from tests.fakes.gateway.state import State

__all__ = ["answer"]

ENVELOPE = "{http://schemas.xmlsoap.org/soap/envelope/}"
ENCODING = "http://schemas.xmlsoap.org/soap/encoding/"
XML_HEADERS = (
    ("Content-Type", 'text/xml; charset="utf-8"'),
    ("Server", "Linux/5.10 UPnP/1.1 a-model/1.0"),
    ("Ext", ""),
)

INVALID_ACTION, INVALID_ARGS = 401, 402

_SERVICE_PATH = re.compile(r"/scpd/(\w+)\.xml")
_SOAP_ACTION = re.compile(r'"([^"#]+)#(\w+)"')


def answer(
    state: State,
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes,
    now: float,
    source: TransportAddress | None,
) -> HttpReply:
    """What comes back.

    Args:
        state: of the gateway; mappings change.
        method: of the request.
        target: of the request.
        headers: by their names in capitals; Host, Content-Length and Connection may be missing, whoever reads bytes
            judges them.
        body: of the request.
        now: the time.
        source: who asks; ``None``: nobody knows, so that any internal client is right.
    """
    blame = _Blame(state)
    if method == "GET":
        state.journal.note(now, "upnp", "GET", source, target=target)
        if body:
            blame("a GET with a body")
        return _document(state, target)
    if method != "POST":
        blame(f"method {method}")
        return HttpReply(status=405)
    return _control(state, target, headers, body, now, source)


def _document(state: State, target: str) -> HttpReply:
    faults = state.faults.http
    if target == DESCRIPTION_PATH:
        if faults.redirect is not None:
            return HttpReply(status=302, headers=(("Location", faults.redirect),), delivery=faults.description)
        if faults.status != 200:
            return HttpReply(status=faults.status, body=b"<html>no</html>", delivery=faults.description)
        return HttpReply(status=200, headers=XML_HEADERS, body=describe(state), delivery=faults.description)
    match = _SERVICE_PATH.fullmatch(target)
    described = None if match is None else describe_service(state, match[1])
    if described is None:
        _Blame(state)(f"GET {target}, which nobody ever told of")
        return HttpReply(status=404, body=b"<html>no</html>")
    return HttpReply(status=200, headers=XML_HEADERS, body=described)


def _control(
    state: State, target: str, headers: dict[str, str], body: bytes, now: float, source: TransportAddress | None
) -> HttpReply:
    blame = _Blame(state)
    faults = state.faults.http
    service = _service_at(state, target)
    if service is None:
        blame(f"POST {target}, which nobody ever told of")
        return HttpReply(status=404)
    match = _SOAP_ACTION.fullmatch(headers.get("SOAPACTION", ""))
    content_type = re.sub(r"\s", "", headers.get("CONTENT-TYPE", "")).lower()
    if content_type != 'text/xml;charset="utf-8"':
        blame(f"Content-Type is {headers.get('CONTENT-TYPE')!r}")
    if match is None or match[1] != service.type:
        blame(f"SOAPAction is {headers.get('SOAPACTION')!r} for {service.type}")
        return _error(state, INVALID_ACTION)
    name = match[2]
    arguments = _parse(state, body, service, name)
    state.journal.note(now, "upnp", name, source, **(arguments or {}))
    if faults.control_status != 200:
        return HttpReply(status=faults.control_status, body=b"<html>no</html>", delivery=faults.control)
    if state.faults.soap.body is not None:
        body = state.faults.soap.body
        return HttpReply(status=200, headers=XML_HEADERS, body=body, delivery=faults.control)
    action = actions_of(state, service.kind).get(name)
    if action is None:
        # No violation: a client may try what an IGD 2 has. It learns from this that there is none.
        return _error(state, INVALID_ACTION)
    if arguments is None or tuple(arguments) != action.inputs:
        blame(f"{name} has the arguments {', '.join(arguments or ())}, and not {', '.join(action.inputs)}")
        return _error(state, INVALID_ARGS)
    code = state.faults.soap.next_error(name)
    if code:
        return _error(state, code)
    try:
        outputs = perform(state, service, name, arguments, source, now)
    except UpnpError as error:
        return _error(state, error.code)
    return _success(state, service, name, action, outputs)


def _service_at(state: State, target: str) -> Service | None:
    """Whose control URL that is: as the description has it, faults and all."""
    http = state.faults.http
    for service in services(state):
        is_ours = service.kind in ("WANIPConnection", "WANPPPConnection") and service.is_connected
        told = http.control_url if is_ours and http.control_url is not None else service.path
        parts = urlsplit(urljoin(http.url_base or f"http://a{DESCRIPTION_PATH}", told))
        if target == (parts.path or "/") + (f"?{parts.query}" if parts.query else ""):
            return service
    return None


def _parse(state: State, body: bytes, service: Service, name: str) -> dict[str, str] | None:
    """The arguments, in their order; ``None``: it is no SOAP."""
    blame = _Blame(state)
    try:
        root = ElementTree.fromstring(body.decode("utf-8"))
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        blame(f"{name}: the body is no XML in UTF-8 ({error})")
        return None
    if root.tag != f"{ENVELOPE}Envelope" or root.get(f"{ENVELOPE}encodingStyle") != ENCODING:
        blame(f"{name}: the envelope is {root.tag} with encodingStyle {root.get(f'{ENVELOPE}encodingStyle')}")
    actions = root.findall(f"{ENVELOPE}Body/*")
    if len(actions) != 1 or actions[0].tag != f"{{{service.type}}}{name}":
        blame(f"{name}: the body has {', '.join(each.tag for each in actions)}")
        return None
    arguments: dict[str, str] = {}
    for each in actions[0]:
        if each.tag in arguments or each.attrib or len(each):
            blame(f"{name}: argument {each.tag} twice, with attributes or with elements inside")
        arguments[each.tag] = each.text or ""
    return arguments


def _success(state: State, service: Service, name: str, action: Action, outputs: dict[str, str]) -> HttpReply:
    faults = state.faults.soap
    told = {key: faults.arguments.get(key, outputs[key]) for key in action.outputs if key not in faults.without}
    arguments = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in told.items())
    inside = f'<u:{name}Response xmlns:u="{service.type}">{arguments}</u:{name}Response>'
    return _envelope(state, 200, inside)


def _error(state: State, code: int) -> HttpReply:
    # 3.2.5: "UPnPError", with HTTP status 500.
    inside = (
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        '<UPnPError xmlns="urn:schemas-upnp-org:control-1-0">'
        f"<errorCode>{code}</errorCode><errorDescription>a model's {code}</errorDescription>"
        "</UPnPError></detail></s:Fault>"
    )
    return _envelope(state, 500, inside)


def _envelope(state: State, status: int, inside: str) -> HttpReply:
    text = (
        f'<?xml version="1.0"?>\n<s:Envelope xmlns:s="{ENVELOPE[1:-1]}" s:encodingStyle="{ENCODING}">'
        f"<s:Body>{inside}</s:Body></s:Envelope>\n"
    )
    return HttpReply(status=status, headers=XML_HEADERS, body=text.encode(), delivery=state.faults.http.control)


class _Blame:
    def __init__(self, state: State) -> None:
        self._journal = state.journal

    def __call__(self, what: str) -> None:
        self._journal.blame("upnp", what)
