"""How does a client of a TURN server prove who it is, and know that it is the server that answers?

The long-term credential mechanism of RFC 8489, 9.2, from the client's side. Nothing is sent about the user before the
server has asked (401); then every request is signed with a key of name, realm and password, and every answer has to be.
What a server must not get away with: a nonce that announces password algorithms without naming any (9.2.1, somebody on
the path wants MD5), and the same question twice (the password is wrong).

A nonce that has expired (438) is no refusal: the request is repeated with the new one. Pure.
"""

from __future__ import annotations

from typing import Any

from relay.account import TurnCredentials
from relay.stun import (
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    USERHASH,
    USERNAME,
    Attribute,
    IntegrityKey,
    Message,
    PasswordAlgorithm,
    SecurityFeature,
    long_term_key,
    opaque_string,
    security_features,
    userhash,
)
from relay.stun.values import AlgorithmParameters

__all__ = ["AuthenticationFailed", "LongTermAuth"]

Pair = tuple[Attribute[Any], Any]

_KNOWN = {int(each): each for each in PasswordAlgorithm}


class AuthenticationFailed(Exception):
    """There is no use in asking again with these credentials; the message says why."""


class LongTermAuth:
    """What one allocation knows of its server's realm, and how it signs.

    Args:
        credentials: ``None``: there are none, and a server that asks for some is one we cannot use.

    Raises:
        ValueError: user name or password have characters that none can have (RFC 8265, OpaqueString).
    """

    __slots__ = ("_algorithm", "_algorithms", "_credentials", "_key", "_name", "_nonce", "_realm", "_uses_hash")

    def __init__(self, credentials: TurnCredentials | None) -> None:
        self._credentials = credentials
        self._name = "" if credentials is None else opaque_string(credentials.username)
        if credentials is not None:
            opaque_string(credentials.password)
        self._realm: str | None = None
        self._nonce = ""
        self._algorithms: tuple[AlgorithmParameters, ...] = ()
        self._algorithm: AlgorithmParameters | None = None
        self._uses_hash = False
        self._key: IntegrityKey | None = None

    @property
    def is_signing(self) -> bool:
        """Whether the server has asked, so that requests are signed and unsigned answers are none."""
        return self._key is not None

    @property
    def username(self) -> str | None:
        """Who signs; ``None``: nobody."""
        return None if self._credentials is None else self._credentials.username

    def use(self, credentials: TurnCredentials) -> None:
        """Sign with these from now on, in the same realm.

        Raises:
            ValueError: see the class.
        """
        name = opaque_string(credentials.username)
        opaque_string(credentials.password)
        self._credentials, self._name = credentials, name
        if self._key is not None:
            self._make_key()

    def on_unauthorized(self, answer: Message, *, was_signed: bool) -> None:
        """401: sign from now on as it asks.

        Args:
            answer: the response.
            was_signed: the request had our signature.

        Raises:
            AuthenticationFailed: the same name and password were refused, or it cannot be met.
        """
        realm = answer.get(REALM)
        if realm is None or answer.get(NONCE) is None:
            raise AuthenticationFailed("the server asks for credentials, but names no realm or nonce")
        if self._credentials is None:
            raise AuthenticationFailed("the server asks for a user name and a password")
        # RFC 8489, 9.2.5: "MUST NOT perform this retry if it is not changing the USERNAME, USERHASH, REALM, or its
        # associated password".
        if was_signed and realm == self._realm:
            raise AuthenticationFailed(f"user name or password are wrong{_words(answer)}")
        self._realm = realm
        self._take(answer)

    def on_stale_nonce(self, answer: Message) -> None:
        """438: sign with its nonce.

        Raises:
            AuthenticationFailed: it has none, or was tampered with.
        """
        if answer.get(NONCE) is None or self._realm is None:
            raise AuthenticationFailed("the server calls a nonce stale, but gives no new one")
        self._take(answer)

    def pairs(self) -> tuple[Pair, ...]:
        """The attributes that a signed request has of it; none before the server has asked."""
        if self._key is None:
            return ()
        who: Pair = (USERHASH, userhash(self._name, str(self._realm))) if self._uses_hash else (USERNAME, self._name)
        found: list[Pair] = [who, (REALM, self._realm), (NONCE, self._nonce)]
        if self._algorithm is not None:
            found += [(PASSWORD_ALGORITHMS, self._algorithms), (PASSWORD_ALGORITHM, self._algorithm)]
        return tuple(found)

    def encode(self, message: Message) -> bytes:
        """The request as bytes, signed if it has to be."""
        if self._key is None:
            return message.encode()
        return message.encode(self._key, sha256=self._algorithm is not None)

    def verifies(self, answer: Message) -> bool:
        """Whether this is the server's answer to a signed request."""
        if self._key is None:
            return False
        if _is_bid_down(answer):
            return False
        if self._algorithm is not None:
            return answer.verify_sha256(self._key)
        return answer.verify(self._key)

    def _take(self, answer: Message) -> None:
        if _is_bid_down(answer):
            raise AuthenticationFailed("the nonce announces password algorithms that the answer does not name")
        self._nonce = answer.get(NONCE) or ""
        features = security_features(self._nonce) or SecurityFeature(0)
        self._uses_hash = bool(features & SecurityFeature.USERNAME_ANONYMITY)
        self._algorithms = answer.get(PASSWORD_ALGORITHMS) or ()
        self._algorithm = _choose(self._algorithms)
        self._make_key()

    def _make_key(self) -> None:
        assert self._credentials is not None and self._realm is not None
        algorithm = PasswordAlgorithm.MD5 if self._algorithm is None else _KNOWN[self._algorithm.algorithm]
        try:
            self._key = long_term_key(self._name, self._realm, self._credentials.password, algorithm)
        except ValueError as error:
            raise AuthenticationFailed(f"the server's realm is none: {error}") from error


def _choose(offered: tuple[AlgorithmParameters, ...]) -> AlgorithmParameters | None:
    """RFC 8489, 9.2.5: the first that we know; RFC 8656, 6: SHA-256 where there are both."""
    known = [each for each in offered if each.algorithm in _KNOWN]
    if offered and not known:
        raise AuthenticationFailed("the server offers no password algorithm that we know")
    return next((each for each in known if each.algorithm == PasswordAlgorithm.SHA256), known[0] if known else None)


def _is_bid_down(answer: Message) -> bool:
    """RFC 8489, 9.2.1: somebody has taken the list of algorithms away."""
    features = security_features(answer.get(NONCE) or "")
    announced = features is not None and bool(features & SecurityFeature.PASSWORD_ALGORITHMS)
    return announced and answer.get(PASSWORD_ALGORITHMS) is None


def _words(answer: Message) -> str:
    reason = "" if answer.error is None else answer.error.reason
    return f" (it says: {reason})" if reason else ""
