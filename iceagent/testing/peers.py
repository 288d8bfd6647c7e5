"""How is a core pumped in a test?

The one file that does it. A :class:`Peer` is a core on a node of a simulated network; an :class:`Exchange` carries
packets and time to all peers of a network; a :class:`SessionPair` is an exchange with a clock of its own, which it
steps to the earliest deadline of all: nothing waits, nothing sleeps, and the same seed gives the same run.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Generic, TypeVar

from iceagent.net.core import Core, Datagram, Event, Transmit
from iceagent.testing.network import IcmpError, Network, Node
from iceagent.testing.trace import format_log

__all__ = ["Exchange", "Peer", "SessionPair", "StepLimit"]

T = TypeVar("T")
CoreT = TypeVar("CoreT", bound=Core, covariant=True)
A = TypeVar("A", bound=Core)
B = TypeVar("B", bound=Core)

MAX_STEPS = 200_000
"""Steps of one :meth:`SessionPair.run`: hours of a quiet session, a minute of a busy one."""

MAX_DRAIN = 10_000
"""Datagrams, or events, that a core may give out after one input."""

MAX_HISTORY = 1_000_000
"""Datagrams, or events, that a peer remembers."""

TRACE_LINES = 30


class StepLimit(RuntimeError):
    """A core does not come to rest. The message has the seed and the last packets."""


class Peer(Generic[CoreT]):
    """A core and the node it runs on.

    Attributes:
        name: for traces.
        core: under test.
        node: where its bases are.
        events: everything that :meth:`Core.poll_event` gave, in order. A test may clear it.
        transmits: everything that :meth:`Core.poll_transmit` gave, with its time. A test may clear it.
        lets_in: asked about each datagram that arrives, with the time; false: the core never sees it.
    """

    def __init__(self, name: str, core: CoreT, node: Node) -> None:
        self.name = name
        self.core = core
        self.node = node
        self.events: list[Event] = []
        self.transmits: list[tuple[float, Transmit]] = []
        self.lets_in: Callable[[Datagram, float], bool] = lambda datagram, now: True

    def drain(self, network: Network, now: float) -> None:
        """Send what the core wants sent, keep what it says. A send that fails goes back to it as an error.

        Raises:
            StepLimit: there is no end to it.
        """
        for _ in range(MAX_DRAIN):
            transmit = self.core.poll_transmit()
            if transmit is None:
                break
            _remember(self.transmits, (now, transmit))
            code = network.send(self.node, transmit, now)
            if code:
                self.core.handle_error(transmit.base, transmit.destination, code, now)
        else:
            raise StepLimit(f"{self.name} gave out {MAX_DRAIN} datagrams after one input (seed {network.seed})")
        for _ in range(MAX_DRAIN):
            event = self.core.poll_event()
            if event is None:
                return
            _remember(self.events, event)
        raise StepLimit(f"{self.name} gave out {MAX_DRAIN} events after one input (seed {network.seed})")

    def handle_datagram(self, datagram: Datagram, network: Network, now: float) -> None:
        """One datagram in, and drain."""
        if self.lets_in(datagram, now):
            self.core.handle_datagram(datagram, now)
            self.drain(network, now)

    def handle_error(self, error: IcmpError, network: Network, now: float) -> None:
        """One error in, and drain."""
        self.core.handle_error(error.base, error.destination, error.errno, now)
        self.drain(network, now)

    def handle_timeout(self, network: Network, now: float) -> None:
        """Time in, if a deadline has passed, and drain."""
        deadline = self.core.poll_timeout()
        if deadline is not None and deadline <= now:
            self.core.handle_timeout(now)
            self.drain(network, now)


def _ignore_datagram(node: Node, datagram: Datagram) -> None:
    """A node without a core: the packet is delivered, and that is all."""


def _ignore_error(error: IcmpError) -> None:
    """A node without a core hears nothing."""


class Exchange:
    """Cores on a network, pumped.

    Args:
        network: what is between them.
        peers: at most one per node.
        on_datagram: is given what arrives at other nodes.
        on_error: is given errors for other nodes.

    Raises:
        ValueError: two peers are on one node.
    """

    def __init__(
        self,
        network: Network,
        peers: Iterable[Peer[Core]] = (),
        *,
        on_datagram: Callable[[Node, Datagram], None] = _ignore_datagram,
        on_error: Callable[[IcmpError], None] = _ignore_error,
    ) -> None:
        self.network = network
        self._peers: dict[Node, Peer[Core]] = {}
        self._on_datagram = on_datagram
        self._on_error = on_error
        for peer in peers:
            self.add(peer)

    def add(self, peer: Peer[Core]) -> None:
        """One more core.

        Raises:
            ValueError: its node has one already.
        """
        if self._peers.setdefault(peer.node, peer) is not peer:
            raise ValueError(f"node {peer.node.name!r} has a core already: {self._peers[peer.node].name!r}")

    def remove(self, peer: Peer[Core]) -> None:
        """Stop pumping a core: its process died. Packets to its node vanish."""
        self._peers.pop(peer.node, None)

    def drain(self, now: float) -> None:
        """Collect what commands made the cores want."""
        for peer in self._peers.values():
            peer.drain(self.network, now)

    def poll_timeout(self) -> float | None:
        """The earliest deadline of all cores and packets; ``None``: nothing will happen."""
        deadlines = [self.network.poll_timeout(), *(peer.core.poll_timeout() for peer in self._peers.values())]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def advance(self, now: float) -> None:
        """Carry packets and time up to ``now``."""
        for node, datagram in self.network.deliver(now):
            peer = self._peers.get(node)
            if peer is None:
                self._on_datagram(node, datagram)
            else:
                peer.handle_datagram(datagram, self.network, now)
        while (error := self.network.poll_error()) is not None:
            peer = self._peers.get(error.node)
            if peer is None:
                self._on_error(error)
            else:
                peer.handle_error(error, self.network, now)
        for peer in tuple(self._peers.values()):
            peer.handle_timeout(self.network, now)


class SessionPair(Generic[A, B]):
    """Two cores under test, with any number of others (servers), on a network.

    Args:
        network: what is between them.
        a: one.
        b: the other.
        others: servers and bystanders, pumped too.
        start: seconds on its clock.

    Attributes:
        now: seconds.
    """

    def __init__(self, network: Network, a: Peer[A], b: Peer[B], *others: Peer[Core], start: float = 0.0) -> None:
        self.network = network
        self.a = a
        self.b = b
        self.now = start
        self.exchange = Exchange(network, (a, b, *others))

    def drain(self, peer: Peer[Core]) -> None:
        """Collect what a command made ``peer`` want; :meth:`run` and :meth:`step` do so by themselves first.

        Raises:
            StepLimit: there is no end to it.
        """
        peer.drain(self.network, self.now)

    def step(self) -> bool:
        """Go to the earliest deadline and do what is due; false: there is none.

        Raises:
            StepLimit: a core does not stop giving out.
        """
        self.exchange.drain(self.now)
        deadline = self.exchange.poll_timeout()
        if deadline is None:
            return False
        self._advance(deadline)
        return True

    def run(self, until: Callable[[], bool] | None = None, *, seconds: float = 60.0) -> bool:
        """Step until something is so, or until so many seconds have passed.

        Args:
            until: looked at before the first step and after every step; ``None``: let the time pass.
            seconds: virtual ones, from now. The clock ends there, unless ``until`` ends the run earlier.

        Returns:
            Whether ``until`` came true; true without ``until``.

        Raises:
            StepLimit: it takes more than 200,000 steps, or a core does not stop giving out.
        """
        end = self.now + seconds
        for _ in range(MAX_STEPS):
            self.exchange.drain(self.now)
            if until is not None and until():
                return True
            deadline = self.exchange.poll_timeout()
            if deadline is None or deadline > end:
                self.now = end
                return until is None
            self._advance(deadline)
        raise StepLimit(
            f"{MAX_STEPS} steps, and the clock at {self.now:.6f} s of {end:.6f} s. The last packets, and the "
            f"{self.trace(last=TRACE_LINES)}"
        )

    def trace(self, *, last: int | None = None) -> str:
        """What happened to the packets, one line each, with the seed on top.

        Args:
            last: only so many.
        """
        log = self.network.log
        shown = log if last is None else islice(log, max(0, len(log) - last), None)
        return f"seed {self.network.seed}\n{format_log(shown)}"

    def _advance(self, at: float) -> None:
        self.now = max(self.now, at)
        self.exchange.advance(self.now)


def _remember(history: list[T], item: T) -> None:
    if len(history) >= MAX_HISTORY:
        raise StepLimit(f"a peer has {MAX_HISTORY} datagrams or events to remember; clear them between steps")
    history.append(item)
