"""How is an action of a service called, and what does the answer mean? (UPnP Device Architecture 1.1, 3.2.) Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from portmap.upnp.elements import BadDocument, Element, parse_document

__all__ = ["ERRORS", "BadAnswer", "Fault", "encode_call", "error_words", "headers_of_call", "parse_answer"]

# UDA 1.1, table 3-3; WANIPConnection:1 and :2; WANIPv6FirewallControl:1.
ERRORS: Mapping[int, str] = {
    401: "InvalidAction",
    402: "InvalidArgs",
    501: "ActionFailed",
    600: "ArgumentValueInvalid",
    601: "ArgumentValueOutOfRange",
    602: "OptionalActionNotImplemented",
    603: "OutOfMemory",
    604: "HumanInterventionRequired",
    605: "StringArgumentTooLong",
    606: "ActionNotAuthorized",
    701: "PinholeSpaceExhausted",
    702: "FirewallDisabled",
    703: "InboundPinholeNotAllowed",
    704: "NoSuchEntry",
    705: "ProtocolNotSupported",
    706: "InternalPortWildcardingNotAllowed",
    707: "ProtocolWildcardingNotAllowed",
    713: "SpecifiedArrayIndexInvalid",
    714: "NoSuchEntryInArray",
    715: "WildCardNotPermittedInSrcIP",
    716: "WildCardNotPermittedInExtPort",
    718: "ConflictInMappingEntry",
    724: "SamePortValuesRequired",
    725: "OnlyPermanentLeasesSupported",
    726: "RemoteHostOnlySupportsWildcard",
    727: "ExternalPortOnlySupportsWildcard",
    728: "NoPortMapsAvailable",
    729: "ConflictWithOtherMechanisms",
    732: "WildCardNotPermittedInIntPort",
}

_ENVELOPE = (
    '<?xml version="1.0"?>\r\n'
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
    "<s:Body>{call}</s:Body></s:Envelope>\r\n"
)
_CODE = re.compile(r"[0-9]{3}")
# What is kept of a device's own words.
_MAX_WORDS = 60
_UNPRINTABLE = re.compile(r"[^ -~]+")


class Fault(Exception):
    """The device said no.

    Args:
        code: its errorCode, 0 … 999.
        words: the name of the code, or what the device said.
    """

    def __init__(self, code: int, words: str) -> None:
        super().__init__(f"{code} {words}")
        self.code = code
        self.words = words


class BadAnswer(ValueError):
    """What came is no answer; the text says what is wrong."""


def encode_call(service_type: str, action: str, arguments: Sequence[tuple[str, str]]) -> bytes:
    """The body of a request.

    Args:
        service_type: of the service.
        action: its name.
        arguments: in the order of the service's specification, which some devices insist on; escaped here.
    """
    inner = "".join(f"<{name}>{_escaped(value)}</{name}>" for name, value in arguments)
    call = f'<u:{action} xmlns:u="{service_type}">{inner}</u:{action}>'
    return _ENVELOPE.format(call=call).encode()


def headers_of_call(service_type: str, action: str) -> tuple[tuple[str, str], ...]:
    """The headers that go with :func:`encode_call`."""
    return (
        ("Content-Type", 'text/xml; charset="utf-8"'),
        ("SOAPAction", f'"{service_type}#{action}"'),
        ("User-Agent", "UPnP/1.1 iceagent"),
    )


def parse_answer(status: int, body: bytes, action: str) -> dict[str, str]:
    """Read what was answered to ``action``.

    Returns:
        Its output arguments: name → text.

    Raises:
        Fault: the device said no, whatever the status: some say it with 200.
        BadAnswer: it is neither a fault nor an answer to ``action``.
    """
    try:
        root = parse_document(body)
    except BadDocument as error:
        raise BadAnswer(f"HTTP {status}" if status != 200 else str(error)) from error
    fault = _fault_of(root)
    if fault is not None:
        raise fault
    if status != 200:
        raise BadAnswer(f"HTTP {status}")
    answer = root.find(f"{action}Response")
    if answer is None:
        raise BadAnswer(f"no answer to {action} in it")
    return {child.name: child.text for child in answer.children}


def error_words(code: int, told: str = "") -> str:
    """The name of an error code; of an unknown one, what the device said."""
    words = _UNPRINTABLE.sub(" ", told).strip()[:_MAX_WORDS]
    return ERRORS.get(code) or words or "unknown error"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fault_of(root: Element) -> Fault | None:
    error = root.find("errorCode")
    if error is None:
        return None
    if not _CODE.fullmatch(error.text):
        raise BadAnswer("an errorCode that is no number")
    described = root.find("errorDescription")
    code = int(error.text)
    return Fault(code, error_words(code, described.text if described is not None else ""))
