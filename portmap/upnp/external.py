"""Which external address has the gateway? Pure.

UPnP tells nobody when it changes (its events need a server of ours, and few gateways send them): it is asked for every
five minutes while there are mappings.
"""

from __future__ import annotations

from collections.abc import Callable

from portmap.upnp.desk import Desk
from portmap.upnp.discovery import host_in
from portmap.upnp.exchanges import Answer

__all__ = ["External"]

ASK_EVERY_S = 300.0
ASK_TIMEOUT_S = 1.0
# An answer that a mapping may use without asking again.
FRESH_S = 10.0


class External:
    """The external address of one gateway.

    Args:
        desk: what is shared.
        then: called with every answer, and with every lack of one: whether it is another address now, and the time.

    Attributes:
        host: the address; ``None``: the gateway does not know it, or has not said.
    """

    def __init__(self, desk: Desk, then: Callable[[bool, float], None]) -> None:
        self.host: str | None = None
        self._desk = desk
        self._then = then
        self._is_asking = False
        self._told_at: float | None = None
        self._ask_at: float | None = None

    @property
    def is_asking(self) -> bool:
        """An answer is awaited."""
        return self._is_asking

    def settle(self, host: str | None, now: float) -> None:
        """A search has told it."""
        self._take(host, now)

    def freshen(self, now: float) -> None:
        """Ask, unless it was told a moment ago."""
        if self._told_at is None or now - self._told_at > FRESH_S:
            self.ask(now)

    def ask(self, now: float) -> None:
        """Ask, if there is whom to ask: a firewall translates nothing."""
        service = self._desk.service
        if self._is_asking or service is None or service.is_firewall:
            return
        self._is_asking = True
        source = self._desk.gateway.source
        self._desk.exchanges.call(service, source, "GetExternalIPAddress", (), ASK_TIMEOUT_S, now, self._on_answer)

    def rest(self) -> None:
        """Nobody needs it: do not ask."""
        self._ask_at = None

    def watch(self, now: float) -> None:
        """Ask from time to time, until :meth:`rest`."""
        if self._ask_at is None:
            self._ask_at = now + ASK_EVERY_S
        elif now >= self._ask_at:
            self._ask_at = now + ASK_EVERY_S
            self.ask(now)

    def poll_timeout(self) -> float | None:
        """When it is asked next."""
        return self._ask_at

    def _on_answer(self, answer: Answer, now: float) -> None:
        self._is_asking = False
        if answer.values is not None:
            self._take(host_in(answer), now)
        else:
            # What is known may still be so.
            self._then(False, now)
            if not answer.is_reached:
                self._desk.on_unreachable(now)

    def _take(self, host: str | None, now: float) -> None:
        is_new = host != self.host
        self.host = host
        self._told_at = now
        self._then(is_new, now)
