"""Who may relay, and how does a server know, without remembering who asked?

Long-term credentials (RFC 8489, 9.2). A nonce says when it was made and is signed together with the client's address:
it is checked without having been kept, so that a million forged requests leave nothing behind, and one that was
overheard is of no use from elsewhere. Users have a name and a password, or, as coturn's ``use-auth-secret`` has it, a
name that begins with the time of its end (``1700000000:name``) and a password that is its HMAC-SHA1 under a secret
that the server shares with whoever hands them out. Several secrets: they are changed one after the other. DEVIATION:
RFC 8656, 6 keeps keys and no passwords; pinned by test_what_is_logged_has_no_secrets.

The answer to an unknown name is that to a wrong password, and takes as long. Passwords that are wrong are counted per
source network: after some, wrong ones are met with silence, and right ones let in as before, since others in that
network, behind one address perhaps, did not guess; after very many, none is looked at for a while. DEVIATION: RFC 8489,
9.2.4 goes on with 401; pinned by test_too_many_wrong_passwords_are_met_with_silence. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from iceagent.net.address import TransportAddress, ip_address, quoted
from relay.stun import (
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    USERHASH,
    USERNAME,
    AlgorithmParameters,
    IntegrityKey,
    Message,
    PasswordAlgorithm,
    SecurityFeature,
    long_term_key,
    nonce_cookie,
    opaque_string,
    userhash,
)
from relay.turn.credentials import Pair
from relay.turn.server.checks import texts, type_name

__all__ = ["Accounts", "Attempts", "Challenge", "Gate", "Identity", "Refused"]

NONCE_S = 600
"""RFC 8656, 5: "SHOULD expire the nonce at least once every hour"."""

ALGORITHMS = (AlgorithmParameters(PasswordAlgorithm.SHA256), AlgorithmParameters(PasswordAlgorithm.MD5))

# RFC 8489, 14.9: "fewer than 128 characters".
REALM_END = 128
# Wrong passwords from one network that are answered: a burst, and so many a minute.
ATTEMPTS, ATTEMPTS_PER_S = 10, 10 / 60
# That are looked at: more than the clients of an office that has yesterday's password send. Who tries them all has
# 400,000 a day, which is nothing against passwords that a machine has made.
LOOKS, LOOKS_PER_S = 500, 5.0
# Networks that are remembered, and for how long: then both have filled.
MAX_NETWORKS = 4096
MEMORY_S = max(ATTEMPTS / ATTEMPTS_PER_S, LOOKS / LOOKS_PER_S)
MAX_KEYS = 1024
_STAMP_LENGTH, _MAC_LENGTH = 8, 16


class Refused(Exception):
    """The request is answered with this error.

    Attributes:
        code: of ERROR-CODE.
        reason: its words.
        pairs: further attributes.
    """

    def __init__(self, code: int, reason: str, *pairs: Pair) -> None:
        super().__init__(f"{code} {reason}")
        self.code, self.reason, self.pairs = code, reason, pairs


class Challenge(Refused):
    """The request is answered with a question for credentials: with :meth:`Gate.challenge`, if at all.

    Attributes:
        is_wrong: the password is; else there was none yet, or its nonce is too old to look at it.
    """

    def __init__(self, code: int, reason: str, *, is_wrong: bool = False) -> None:
        super().__init__(code, reason)
        self.is_wrong = is_wrong


class Silence(Exception):
    """The request is not answered.

    Attributes:
        is_wrong: the password is; else it was not looked at.
    """

    def __init__(self, *, is_wrong: bool) -> None:
        super().__init__()
        self.is_wrong = is_wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who has signed a request.

    Attributes:
        username: as sent.
        account: whose quota counts: of a time-limited name, what stands behind the time.
        key: signs the answer.
        sha256: with MESSAGE-INTEGRITY-SHA256.
    """

    username: str
    account: str
    key: IntegrityKey
    sha256: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Who may relay.

    Attributes:
        realm: of all of them.
        users: name → password.
        secrets: of time-limited names; the first is the newest.

    Raises:
        ValueError: something is no text, or none that may stand in a request (RFC 8265, 4.2). No password is quoted.
    """

    realm: str
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Sequence[str] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        secrets = texts("secrets", self.secrets, '("north", "south")')
        # RFC 8489, 14.3 and 14.9: as they stand in requests.
        object.__setattr__(self, "realm", _opaque("realm", self.realm))
        if len(self.realm) >= REALM_END:
            raise ValueError(f"realm: fewer than {REALM_END} characters are expected")
        for secret in secrets:
            _opaque("secrets", secret)
        object.__setattr__(self, "secrets", secrets)
        object.__setattr__(self, "users", _checked_users(self.users))

    def passwords(self, username: str, wall_now: float) -> list[str]:
        """Those that this name may have; empty: there is no such user, or the time is over."""
        known = self.users.get(username)
        if known is not None:
            return [known]
        ends, _, _ = username.partition(":")
        if not self.secrets or not (ends.isascii() and ends.isdigit() and len(ends) < 16) or int(ends) <= wall_now:
            return []
        name = username.encode()
        return [
            base64.b64encode(hmac.new(secret.encode(), name, hashlib.sha1).digest()).decode() for secret in self.secrets
        ]


class Attempts:
    """Wrong passwords, by source network (/24, /64): two buckets each, of those that are answered and of those that are
    looked at; a network of which both are full is forgotten.
    """

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[int, int], tuple[float, float, float]] = OrderedDict()

    def are_used_up(self, host: str, now: float) -> bool:
        """Whether no password from the network of this host is looked at for now."""
        return self._left(_network(host), now)[1] < 1.0

    def note(self, host: str, now: float) -> bool:
        """One was wrong; whether that may be answered."""
        network = _network(host)
        answers, looks = self._left(network, now)
        # Who was not heard of for so long has all attempts again. No other is forgotten, or many networks together
        # would have as many as they like.
        while self._buckets and next(iter(self._buckets.values()))[2] + MEMORY_S <= now:
            self._buckets.popitem(last=False)
        if network not in self._buckets and len(self._buckets) >= MAX_NETWORKS:
            return False
        is_answered = answers >= 1.0
        self._buckets[network] = (answers - is_answered, max(0.0, looks - 1.0), now)
        self._buckets.move_to_end(network)
        return is_answered

    def _left(self, network: tuple[int, int], now: float) -> tuple[float, float]:
        answers, looks, at = self._buckets.get(network, (float(ATTEMPTS), float(LOOKS), now))
        idle_s = now - at
        return min(float(ATTEMPTS), answers + idle_s * ATTEMPTS_PER_S), min(float(LOOKS), looks + idle_s * LOOKS_PER_S)


class Gate:
    """Lets requests in that are signed.

    Args:
        accounts: who may.
        system_rng: draws the key of nonces.
    """

    def __init__(self, accounts: Accounts, system_rng: Random) -> None:
        self._nonce_key = system_rng.randbytes(32)
        self._dummy = IntegrityKey(system_rng.randbytes(16))
        self.attempts = Attempts()
        self.change(accounts)

    def change(self, accounts: Accounts) -> None:
        """From now on these may. What they have stays theirs; who is none of them any more cannot refresh it."""
        self._accounts = accounts
        self._hashes = {userhash(name, accounts.realm): name for name in accounts.users}
        # RFC 8489, 9.2: a hash can be looked up among names that are known, not among those that are yet to be made.
        features = SecurityFeature.PASSWORD_ALGORITHMS
        if accounts.users and not accounts.secrets:
            features |= SecurityFeature.USERNAME_ANONYMITY
        self._cookie = nonce_cookie(features)
        self._keys: OrderedDict[tuple[str, str, int], IntegrityKey] = OrderedDict()

    def authenticate(
        self,
        request: Message,
        client: TransportAddress,
        now: float,
        wall_now: float,
        *,
        is_known: bool = False,
        sibling: TransportAddress | None = None,
    ) -> Identity:
        """RFC 8489, 9.2.4.

        Args:
            request: to be judged.
            client: where it came from.
            now: seconds, monotonic.
            wall_now: seconds since 1970.
            is_known: this five-tuple has an allocation: somebody's wrong passwords in its network are not its fault.
            sibling: where the client's control connection is: the nonce may be that one's, from the same host. RFC
                6062, 4.3 wants "the same method and credentials", and coturn's client knows no other nonce there.

        Raises:
            Refused: with 400; :class:`Challenge` with 401 or 438.
            Silence: too many wrong passwords came from this network.
        """
        if not (request.has_integrity or request.has_integrity_sha256):
            raise Challenge(401, "Unauthorized")
        realm, nonce = request.get(REALM), request.get(NONCE)
        username = self._username(request)
        if realm is None or nonce is None or username is None:
            raise Refused(400, "Bad Request")
        if not is_known and self.attempts.are_used_up(client.host, now):
            raise Silence(is_wrong=False)
        is_fresh = self._is_fresh(nonce, client, now)
        if not is_fresh and sibling is not None and sibling.host == client.host:
            is_fresh = self._is_fresh(nonce, sibling, now)
        if not is_fresh:
            raise Challenge(438, "Stale Nonce")
        algorithm = self._algorithm(request)
        identity = self._verify(request, username, algorithm, wall_now) if realm == self._accounts.realm else None
        if identity is None:
            if not self.attempts.note(client.host, now) and not is_known:
                raise Silence(is_wrong=True)
            raise Challenge(401, "Unauthorized", is_wrong=True)
        return identity

    def make_nonce(self, client: TransportAddress, now: float) -> str:
        """Good for ten minutes, from this address."""
        stamp = f"{int(now) & 0xFFFFFFFF:08x}"
        return f"{self._cookie}{stamp}{self._mac(stamp, client)}"

    def challenge(self, client: TransportAddress, now: float) -> tuple[Pair, ...]:
        """What a 401 and a 438 carry (RFC 8489, 9.2.4)."""
        return (
            (REALM, self._accounts.realm),
            (NONCE, self.make_nonce(client, now)),
            (PASSWORD_ALGORITHMS, ALGORITHMS),
        )

    def _is_fresh(self, nonce: str, client: TransportAddress, now: float) -> bool:
        start = len(self._cookie)
        stamp, mac = nonce[start : start + _STAMP_LENGTH], nonce[start + _STAMP_LENGTH :]
        expected = self._mac(stamp, client)
        if not nonce.startswith(self._cookie) or not hmac.compare_digest(mac.encode(), expected.encode()):
            return False
        # It is ours, so the stamp is one.
        return (int(now) - int(stamp, 16)) & 0xFFFFFFFF <= NONCE_S

    def _mac(self, stamp: str, client: TransportAddress) -> str:
        text = f"{stamp} {client.host} {client.port}".encode()
        return hmac.new(self._nonce_key, text, hashlib.sha256).hexdigest()[:_MAC_LENGTH]

    def _username(self, request: Message) -> str | None:
        hashed = request.get(USERHASH)
        if hashed is not None:
            # Unknown ones are judged like a wrong password.
            return self._hashes.get(hashed, "\0")
        return request.get(USERNAME)

    def _algorithm(self, request: Message) -> PasswordAlgorithm:
        """9.2.4: both attributes or none; the list must be the one that was offered."""
        chosen, offered = request.get(PASSWORD_ALGORITHM), request.get(PASSWORD_ALGORITHMS)
        if chosen is None and offered is None:
            return PasswordAlgorithm.MD5
        if chosen is None or offered != ALGORITHMS or chosen not in ALGORITHMS:
            raise Refused(400, "Bad Request")
        return PasswordAlgorithm(chosen.algorithm)

    def _verify(
        self, request: Message, username: str, algorithm: PasswordAlgorithm, wall_now: float
    ) -> Identity | None:
        verify = request.verify_sha256 if request.has_integrity_sha256 else request.verify
        # 9.2.4: the answer to who sent PASSWORD-ALGORITHMS has MESSAGE-INTEGRITY-SHA256, to others the older one.
        sha256 = request.get(PASSWORD_ALGORITHM) is not None
        passwords = self._accounts.passwords(username, wall_now)
        for password in passwords:
            key = self._key(username, password, algorithm)
            if verify(key):
                account = username if username in self._accounts.users else username.partition(":")[2] or username
                return Identity(username=username, account=account, key=key, sha256=sha256)
        if not passwords:
            # An unknown user takes as long as a known one.
            verify(self._dummy)
        return None

    def _key(self, username: str, password: str, algorithm: PasswordAlgorithm) -> IntegrityKey:
        entry = (username, password, int(algorithm))
        key = self._keys.get(entry)
        if key is None:
            key = long_term_key(username, self._accounts.realm, password, algorithm)
            self._keys[entry] = key
            if len(self._keys) > MAX_KEYS:
                self._keys.popitem(last=False)
        return key


def _network(host: str) -> tuple[int, int]:
    ip = ip_address(host)
    return (6, int(ip) >> 64) if ip.version == 6 else (4, int(ip) >> 8)


def _checked_users(users: Any) -> dict[str, str]:
    if not isinstance(users, Mapping):
        raise ValueError(f'users is of type {type_name(users)}, a mapping is expected: {{"alice": "secret"}}')
    found: dict[str, str] = {}
    for name, password in users.items():
        opaque = _opaque("users", name)
        _opaque(f"users, {quoted(name)}", password)
        if opaque in found:
            raise ValueError(f"users has {quoted(name)} twice, in two spellings")
        found[opaque] = password
    return found


def _opaque(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{name} has something of type {type_name(text)} where a text is expected")
    try:
        return opaque_string(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
