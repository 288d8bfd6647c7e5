"""What was on the wire? The log of a simulated network, readable. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from iceagent.testing.links import Fate
from iceagent.testing.network import LogEntry
from relay.stun import ERROR_CODE, USE_CANDIDATE, BadMessage, Message, MessageClass, Method, is_stun, parse

__all__ = ["describe", "format_log"]

_CLASS_NAMES = {
    MessageClass.REQUEST: "request",
    MessageClass.INDICATION: "indication",
    MessageClass.SUCCESS: "success",
    MessageClass.ERROR: "error",
}


def describe(data: bytes) -> str:
    """A datagram in a few words: method, class and the start of the transaction id of a STUN message, else its size."""
    if is_stun(data):
        try:
            return _describe_stun(parse(data))
        except BadMessage as error:
            return f"STUN? ({error})"
    if data and 0x40 <= data[0] < 0x50:
        return f"channel data or payload, {len(data)} bytes"
    return f"payload, {len(data)} bytes"


def _describe_stun(message: Message) -> str:
    try:
        method = Method(message.method).name.lower().replace("_", " ").capitalize()
    except ValueError:
        method = f"method {message.method:#x}"
    words = [method, _CLASS_NAMES[message.message_class], message.transaction_id.hex()[:8]]
    if message.get(USE_CANDIDATE):
        words.append("USE-CANDIDATE")
    error = message.get(ERROR_CODE)
    if error is not None:
        words.append(f"{error.code} {error.reason}")
    return " ".join(words)


def format_log(log: Iterable[LogEntry], fates: Collection[Fate] = tuple(Fate)) -> str:
    """One line per entry: seconds, fate, where, from, to, what."""
    return "\n".join(_format_entry(entry) for entry in log if entry.fate in fates)


def _format_entry(entry: LogEntry) -> str:
    packet = entry.packet
    ttl = f" ttl {packet.ttl}" if packet.ttl < 16 else ""
    route = f"{packet.source} > {packet.destination}"
    return f"{entry.at:10.4f}  {entry.fate.value:11}  {entry.where:12}  {route:44}  {describe(packet.data)}{ttl}"
