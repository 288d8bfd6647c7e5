"""How does a request to a TURN server come to its answer?

A transaction (``relay/stun/transaction.py``) with everything that RFC 8489, 9.2.5 puts around it: the server asks for
credentials (401) or for a newer nonce (438), and the request is sent again, signed; what should be signed and is not
counts as never received; where nothing else comes, that is what is said. All but 437: coturn with mobility forgets who
we are together with the allocation, and cannot sign that it has; who could forge that answer could as well take away
every other one. An owner hears of a request once: its answer, or why there is none. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from relay.stun import DEFAULT_RC, DEFAULT_RM, Message, MessageClass, Method, Transaction, TransactionTable, build
from relay.turn.credentials import AuthenticationFailed, LongTermAuth, Pair

__all__ = ["Request", "Requests"]

# A server that calls every nonce stale is not answered for ever.
MAX_NONCES = 16
# More than there can be: one for each of 4,096 channels and 1,000 permissions, and two that refresh.
MAX_REQUESTS = 8192


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """What is asked of the server.

    Attributes:
        method: Allocate, Refresh, CreatePermission, ChannelBind.
        pairs: its attributes, but for credentials.
        answered: called with (answer, rtt_s or ``None``, now): a success, or an error that is no question for
            credentials.
        failed: called with (reason, is_refused, now): no answer, or none with a valid signature; or the server refuses
            our credentials.
        rc: how often it is sent at most.
        rm: RTOs that are waited for after the last.
    """

    method: Method
    pairs: tuple[Pair, ...]
    answered: Callable[[Message, float | None, float], None]
    failed: Callable[[str, bool, float], None]
    rc: int = DEFAULT_RC
    rm: int = DEFAULT_RM
    was_signed: bool = False
    nonces: int = 0
    discarded: int = 0


class Requests:
    """The requests of one five-tuple.

    Args:
        base: our end.
        server: the other one.
        auth: how they are signed.
        system_rng: draws transaction ids.
        rto_s: the first interval between two sends.
        is_stream: nothing is repeated.

    Attributes:
        base: may change between two requests.
        counters: answers that were of no use, by reason.
    """

    def __init__(
        self,
        base: TransportAddress,
        server: TransportAddress,
        auth: LongTermAuth,
        system_rng: Random,
        *,
        rto_s: float,
        is_stream: bool,
    ) -> None:
        self.base = base
        self._server = server
        self._auth = auth
        self._system_rng = system_rng
        self._rto_s = rto_s
        self._is_stream = is_stream
        self._table = TransactionTable(limit=MAX_REQUESTS)
        self.counters: Counter[str] = Counter()

    def send(self, request: Request, now: float) -> None:
        """Send it, and again until it is answered."""
        identity = self._system_rng.getrandbits(96).to_bytes(12, "big")
        message = build(request.method, MessageClass.REQUEST, identity, *request.pairs, *self._auth.pairs())
        request.was_signed = self._auth.is_signing
        self._table.start(
            identity,
            self.base,
            self._server,
            self._auth.encode(message),
            now,
            rto=self._rto_s,
            rc=request.rc,
            rm=request.rm,
            context=request,
            reliable=self._is_stream,
        )

    def handle_answer(self, answer: Message, now: float) -> bool:
        """Take a response from the server to our base; false: to no request of ours."""
        transaction = self._table.find(answer.transaction_id)
        if transaction is None:
            return False
        request: Request = transaction.context
        code = answer.error.code if answer.error is not None else 0
        if answer.method != request.method or (answer.is_error and code == 0):
            self._discard(transaction, "answer of another kind", now)
        elif code in (401, 438):
            self._table.remove(transaction)
            self._ask_again(request, answer, code, now)
        elif request.was_signed and code != 437 and not self._auth.verifies(answer):
            # DEVIATION: RFC 8489, 9.2.5 discards an unsigned 437 as well; pinned by
            # test_an_unsigned_437_is_believed.
            self._discard(transaction, "answer without a valid signature", now)
        elif answer.unknown_required:
            # RFC 8489, 6.3.3 and 6.3.4: the transaction has failed, whatever else is in it.
            self._table.remove(transaction)
            request.failed("the answer has attributes that we have to know and do not", False, now)
        else:
            self._table.remove(transaction)
            request.answered(answer, transaction.rtt(now), now)
        return True

    def handle_timeout(self, now: float) -> None:
        """Repeat, give up."""
        for transaction in self._table.handle_timeout(now):
            request: Request = transaction.context
            reason = "the server's answers have no valid signature" if request.discarded else "no answer"
            request.failed(reason, False, now)

    def poll_timeout(self) -> float | None:
        """The next repetition."""
        return self._table.poll_timeout()

    def poll_transmit(self) -> Transmit | None:
        """One request."""
        return self._table.poll_transmit()

    def repeat(self) -> None:
        """Send what is under way once more, at once."""
        for transaction in self._table.pending(self.base, self._server):
            self._table.repeat(transaction)

    def forget(self) -> None:
        """Nothing is repeated or waited for any more; owners hear nothing."""
        self._table = TransactionTable(limit=MAX_REQUESTS)

    def _ask_again(self, request: Request, answer: Message, code: int, now: float) -> None:
        request.nonces += 1
        try:
            if request.nonces > MAX_NONCES:
                raise AuthenticationFailed("the server calls every nonce stale")
            if code == 401:
                self._auth.on_unauthorized(answer, was_signed=request.was_signed)
            else:
                self._auth.on_stale_nonce(answer)
        except AuthenticationFailed as error:
            request.failed(str(error), True, now)
        else:
            self.send(request, now)

    def _discard(self, transaction: Transaction, reason: str, now: float) -> None:
        """RFC 8489, 9.2.5: as if it had never been received; over a stream, that is the end of it."""
        self.counters[reason] += 1
        request: Request = transaction.context
        request.discarded += 1
        if self._is_stream:
            self._table.remove(transaction)
            request.failed("the server's answers have no valid signature", False, now)
