"""Which STUN attributes do we know, and what Python value does each have?

One :class:`Attribute` per attribute of RFC 8489 (STUN), 8445 (ICE), 8656 (TURN), 6062 (TURN for TCP), 8016 (mobility)
and 5780 (behaviour discovery), two that no RFC defines but other ICE agents send, and one of our own. An attribute that
is not here is carried as raw bytes. MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT are no values but
properties of a whole message, see :mod:`relay.stun.message`. CACHE-TIMEOUT (0x8027) is registered by RFC 5780 but has
no format.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from iceagent.net.address import TransportAddress
from relay.stun import values
from relay.stun.values import AddressErrorCode, AlgorithmParameters, ChangeRequest, ErrorCode, Icmp, NetworkCost

T = TypeVar("T")


class Attribute(int, Generic[T]):
    """A kind of attribute: its code, that knows its name and its values.

    It is an ``int``, so that it stands for its code in :attr:`relay.stun.Message.attributes`.

    Attributes:
        name: as the RFC writes it.
        encode: from value and transaction id (12 bytes) to the bytes of the value, without padding.
        decode: the inverse. Raises :class:`relay.stun.BadMessage`.
    """

    name: str
    encode: Callable[[T, bytes], bytes]
    decode: Callable[[bytes, bytes], T]

    def __new__(
        cls, code: int, name: str, encode: Callable[[T, bytes], bytes], decode: Callable[[bytes, bytes], T]
    ) -> Attribute[T]:
        self = super().__new__(cls, code)
        self.name, self.encode, self.decode = name, encode, decode
        return self

    @property
    def code(self) -> int:
        """0 … 0xFFFF; below 0x8000, an agent that does not know it must not ignore it (RFC 8489, 14)."""
        return int(self)

    def __repr__(self) -> str:
        return self.name


# RFC 8489, 14
MAPPED_ADDRESS: Attribute[TransportAddress] = Attribute(
    0x0001, "MAPPED-ADDRESS", values.encode_address, values.decode_address
)
USERNAME: Attribute[str] = Attribute(0x0006, "USERNAME", values.encode_text, values.decode_text)
ERROR_CODE: Attribute[ErrorCode] = Attribute(0x0009, "ERROR-CODE", values.encode_error_code, values.decode_error_code)
UNKNOWN_ATTRIBUTES: Attribute[tuple[int, ...]] = Attribute(
    0x000A, "UNKNOWN-ATTRIBUTES", values.encode_codes, values.decode_codes
)
REALM: Attribute[str] = Attribute(0x0014, "REALM", values.encode_text, values.decode_text)
NONCE: Attribute[str] = Attribute(0x0015, "NONCE", values.encode_text, values.decode_text)
PASSWORD_ALGORITHM: Attribute[AlgorithmParameters] = Attribute(
    0x001D, "PASSWORD-ALGORITHM", values.encode_algorithm, values.decode_algorithm
)
USERHASH: Attribute[bytes] = Attribute(0x001E, "USERHASH", values.encode_hash, values.decode_hash)
XOR_MAPPED_ADDRESS: Attribute[TransportAddress] = Attribute(
    0x0020, "XOR-MAPPED-ADDRESS", values.encode_xor_address, values.decode_xor_address
)
PASSWORD_ALGORITHMS: Attribute[tuple[AlgorithmParameters, ...]] = Attribute(
    0x8002, "PASSWORD-ALGORITHMS", values.encode_algorithms, values.decode_algorithms
)
ALTERNATE_DOMAIN: Attribute[str] = Attribute(0x8003, "ALTERNATE-DOMAIN", values.encode_domain, values.decode_domain)
SOFTWARE: Attribute[str] = Attribute(0x8022, "SOFTWARE", values.encode_text, values.decode_text)
ALTERNATE_SERVER: Attribute[TransportAddress] = Attribute(
    0x8023, "ALTERNATE-SERVER", values.encode_address, values.decode_address
)

# RFC 8445, 16.1
PRIORITY: Attribute[int] = Attribute(0x0024, "PRIORITY", values.encode_u32, values.decode_u32)
USE_CANDIDATE: Attribute[bool] = Attribute(0x0025, "USE-CANDIDATE", values.encode_flag, values.decode_flag)
ICE_CONTROLLED: Attribute[int] = Attribute(0x8029, "ICE-CONTROLLED", values.encode_u64, values.decode_u64)
ICE_CONTROLLING: Attribute[int] = Attribute(0x802A, "ICE-CONTROLLING", values.encode_u64, values.decode_u64)

# Not standardised. NOMINATION counts nominations; senders keep it below 2^24, which some receivers rely on.
NOMINATION: Attribute[int] = Attribute(0xC001, "NOMINATION", values.encode_u32, values.decode_u32)
NETWORK_COST: Attribute[NetworkCost] = Attribute(
    0xC057, "NETWORK-COST", values.encode_network_cost, values.decode_network_cost
)

# Between two agents of this package, see docs/path-messages.md; comprehension-optional.
PATH_MESSAGE: Attribute[bytes] = Attribute(0xC1CE, "PATH-MESSAGE", values.encode_bytes, values.decode_bytes)

# RFC 8656, 18. LIFETIME is in seconds; REQUESTED-TRANSPORT is an IP protocol number; EVEN-PORT is True where the next
# port is to be reserved too; the families are those of AddressFamily (other numbers survive, to be answered with 440).
CHANNEL_NUMBER: Attribute[int] = Attribute(0x000C, "CHANNEL-NUMBER", values.encode_high_u16, values.decode_high_u16)
LIFETIME: Attribute[int] = Attribute(0x000D, "LIFETIME", values.encode_u32, values.decode_u32)
XOR_PEER_ADDRESS: Attribute[TransportAddress] = Attribute(
    0x0012, "XOR-PEER-ADDRESS", values.encode_xor_address, values.decode_xor_address
)
DATA: Attribute[bytes] = Attribute(0x0013, "DATA", values.encode_bytes, values.decode_bytes)
XOR_RELAYED_ADDRESS: Attribute[TransportAddress] = Attribute(
    0x0016, "XOR-RELAYED-ADDRESS", values.encode_xor_address, values.decode_xor_address
)
REQUESTED_ADDRESS_FAMILY: Attribute[int] = Attribute(
    0x0017, "REQUESTED-ADDRESS-FAMILY", values.encode_high_u8, values.decode_high_u8
)
EVEN_PORT: Attribute[bool] = Attribute(0x0018, "EVEN-PORT", values.encode_even_port, values.decode_even_port)
REQUESTED_TRANSPORT: Attribute[int] = Attribute(
    0x0019, "REQUESTED-TRANSPORT", values.encode_high_u8, values.decode_high_u8
)
DONT_FRAGMENT: Attribute[bool] = Attribute(0x001A, "DONT-FRAGMENT", values.encode_flag, values.decode_flag)
RESERVATION_TOKEN: Attribute[bytes] = Attribute(0x0022, "RESERVATION-TOKEN", values.encode_token, values.decode_token)
ADDITIONAL_ADDRESS_FAMILY: Attribute[int] = Attribute(
    0x8000, "ADDITIONAL-ADDRESS-FAMILY", values.encode_high_u8, values.decode_high_u8
)
ADDRESS_ERROR_CODE: Attribute[AddressErrorCode] = Attribute(
    0x8001, "ADDRESS-ERROR-CODE", values.encode_address_error_code, values.decode_address_error_code
)
ICMP: Attribute[Icmp] = Attribute(0x8004, "ICMP", values.encode_icmp, values.decode_icmp)

# RFC 6062, 6.2.1
CONNECTION_ID: Attribute[int] = Attribute(0x002A, "CONNECTION-ID", values.encode_u32, values.decode_u32)

# RFC 8016, 3.3; empty in the first request
MOBILITY_TICKET: Attribute[bytes] = Attribute(0x8030, "MOBILITY-TICKET", values.encode_bytes, values.decode_bytes)

# RFC 5780, 7
CHANGE_REQUEST: Attribute[ChangeRequest] = Attribute(
    0x0003, "CHANGE-REQUEST", values.encode_change_request, values.decode_change_request
)
PADDING: Attribute[bytes] = Attribute(0x0026, "PADDING", values.encode_bytes, values.decode_bytes)
RESPONSE_PORT: Attribute[int] = Attribute(0x0027, "RESPONSE-PORT", values.encode_high_u16, values.decode_port)
RESPONSE_ORIGIN: Attribute[TransportAddress] = Attribute(
    0x802B, "RESPONSE-ORIGIN", values.encode_address, values.decode_address
)
OTHER_ADDRESS: Attribute[TransportAddress] = Attribute(
    0x802C, "OTHER-ADDRESS", values.encode_address, values.decode_address
)

ATTRIBUTES: dict[int, Attribute[Any]] = {
    attribute: attribute for attribute in tuple(globals().values()) if isinstance(attribute, Attribute)
}
"""Every attribute above, by code."""
