"""STUN: messages, attributes, integrity, transactions and stream framing. Everything here is pure.

A request and its answer::

    request = build(Method.BINDING, MessageClass.REQUEST, transaction_id, (USERNAME, "them:us"), (PRIORITY, 1))
    data = request.encode(short_term_key(their_password))

    received = parse(data)  # raises BadMessage, nothing else
    if received.verify(key):
        answer = received.success((XOR_MAPPED_ADDRESS, source)).encode(key)

:mod:`relay.stun.attributes` lists the attributes and what value each has.
"""

from __future__ import annotations

from relay.stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    ATTRIBUTES,
    CHANGE_REQUEST,
    CHANNEL_NUMBER,
    CONNECTION_ID,
    DATA,
    DONT_FRAGMENT,
    ERROR_CODE,
    EVEN_PORT,
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    ICMP,
    LIFETIME,
    MAPPED_ADDRESS,
    MOBILITY_TICKET,
    NETWORK_COST,
    NOMINATION,
    NONCE,
    OTHER_ADDRESS,
    PADDING,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    PRIORITY,
    REALM,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Attribute,
)
from relay.stun.classic import classic_response
from relay.stun.errors import BadMessage
from relay.stun.framing import MAX_MESSAGE_LENGTH, StreamFramer
from relay.stun.integrity import (
    IntegrityKey,
    PasswordAlgorithm,
    SecurityFeature,
    long_term_key,
    nonce_cookie,
    opaque_string,
    security_features,
    short_term_key,
    userhash,
)
from relay.stun.message import Message, build
from relay.stun.parsing import is_stun, parse
from relay.stun.transaction import RELIABLE_TIMEOUT, TooManyTransactions, Transaction, TransactionTable
from relay.stun.values import (
    AddressErrorCode,
    AddressFamily,
    AlgorithmParameters,
    ChangeRequest,
    ErrorCode,
    Icmp,
    NetworkCost,
)
from relay.stun.wire import HEADER_LENGTH, MAGIC_COOKIE, MessageClass, Method

__all__ = [
    "ADDITIONAL_ADDRESS_FAMILY",
    "ADDRESS_ERROR_CODE",
    "ALTERNATE_DOMAIN",
    "ALTERNATE_SERVER",
    "ATTRIBUTES",
    "CHANGE_REQUEST",
    "CHANNEL_NUMBER",
    "CONNECTION_ID",
    "DATA",
    "DONT_FRAGMENT",
    "ERROR_CODE",
    "EVEN_PORT",
    "HEADER_LENGTH",
    "ICE_CONTROLLED",
    "ICE_CONTROLLING",
    "ICMP",
    "LIFETIME",
    "MAGIC_COOKIE",
    "MAPPED_ADDRESS",
    "MAX_MESSAGE_LENGTH",
    "MOBILITY_TICKET",
    "NETWORK_COST",
    "NOMINATION",
    "NONCE",
    "OTHER_ADDRESS",
    "PADDING",
    "PASSWORD_ALGORITHM",
    "PASSWORD_ALGORITHMS",
    "PRIORITY",
    "REALM",
    "RELIABLE_TIMEOUT",
    "REQUESTED_ADDRESS_FAMILY",
    "REQUESTED_TRANSPORT",
    "RESERVATION_TOKEN",
    "RESPONSE_ORIGIN",
    "RESPONSE_PORT",
    "SOFTWARE",
    "UNKNOWN_ATTRIBUTES",
    "USERHASH",
    "USERNAME",
    "USE_CANDIDATE",
    "XOR_MAPPED_ADDRESS",
    "XOR_PEER_ADDRESS",
    "XOR_RELAYED_ADDRESS",
    "AddressErrorCode",
    "AddressFamily",
    "AlgorithmParameters",
    "Attribute",
    "BadMessage",
    "ChangeRequest",
    "ErrorCode",
    "Icmp",
    "IntegrityKey",
    "Message",
    "MessageClass",
    "Method",
    "NetworkCost",
    "PasswordAlgorithm",
    "SecurityFeature",
    "StreamFramer",
    "TooManyTransactions",
    "Transaction",
    "TransactionTable",
    "build",
    "classic_response",
    "is_stun",
    "long_term_key",
    "nonce_cookie",
    "opaque_string",
    "parse",
    "security_features",
    "short_term_key",
    "userhash",
]
