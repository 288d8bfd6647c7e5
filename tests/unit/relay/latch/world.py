"""A core of the latching relay with one channel, in virtual time, and somebody who speaks STUN to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from relay.latch.channel import Channel, ChannelOptions, Flow, SideKey
from relay.latch.core import LatchCore
from relay.stun import USERNAME, Message, MessageClass, Method, build, parse, short_term_key

LEFT, RIGHT = SideKey(username="left", password="l" * 22), SideKey(username="right", password="r" * 22)
HOST = "192.0.2.1"
LEFT_BASE, RIGHT_BASE = TransportAddress(HOST, 5000), TransportAddress(HOST, 5001)
ALICE, BOB, MALLORY = (TransportAddress(f"203.0.113.{n}", 1000 + n) for n in (1, 2, 3))


class FakeKernel:
    """Forwards flows, as far as it says."""

    def __init__(self) -> None:
        self.flows: dict[Flow, tuple[int, int]] = {}
        self.asked: list[Sequence[Flow] | None] = []

    def change(self, remove: Iterable[Flow], add: Iterable[Flow]) -> None:
        for flow in remove:
            del self.flows[flow]
        self.flows.update(dict.fromkeys(add, (0, 0)))

    def counts(self, flows: Sequence[Flow] | None = None) -> dict[Flow, tuple[int, int]]:
        self.asked.append(flows)
        return {flow: each for flow, each in self.flows.items() if flows is None or flow in flows}


class World:
    """One channel.

    Attributes:
        now: seconds.
        events: that the core told.
    """

    def __init__(self, *, kernel: FakeKernel | None = None, **options: Any) -> None:
        self.now = 0.0
        self.core = LatchCore(kernel)
        self.events: list[Event] = []
        self._rng = Random(1)
        self.channel = self.open(**options)

    def open(
        self, bases: tuple[TransportAddress, TransportAddress] = (LEFT_BASE, RIGHT_BASE), **options: Any
    ) -> Channel:
        """Another channel."""
        chosen = ChannelOptions(**({"left": LEFT, "right": RIGHT} | options))
        channel = self.core.open((bases[0].port, bases[1].port), chosen, self.now)
        for side, base in zip(channel.sides, bases, strict=True):
            self.core.add_base(channel, side, base)
        return channel

    def request(
        self, key: SideKey, *, suffix: str = "", sha256: bool = False, both: bool = False, **extra: Any
    ) -> bytes:
        """A new one."""
        message = build(
            Method.BINDING,
            MessageClass.REQUEST,
            self._rng.randbytes(12),
            (USERNAME, key.username + suffix),
            *extra.get("pairs", ()),
        )
        return message.encode(short_term_key(key.password), sha256=sha256, both=both)

    def send(self, source: TransportAddress, data: bytes, base: TransportAddress = LEFT_BASE) -> bool:
        """Whether it is to be forwarded."""
        is_data = self.core.admits(Datagram(base, source, data), self.now)
        self._take_events()
        return is_data

    def latch(self, source: TransportAddress = ALICE, side: str = "left") -> Message:
        """An authenticated request; its answer."""
        key, base = (LEFT, LEFT_BASE) if side == "left" else (RIGHT, RIGHT_BASE)
        assert not self.send(source, self.request(key), base)
        return self.answer(source)

    def answer(self, to: TransportAddress) -> Message:
        """The one answer that leaves."""
        (transmit,) = self.transmits()
        assert transmit.destination == to
        return parse(transmit.data)

    def transmits(self) -> list[Transmit]:
        found = []
        while (transmit := self.core.poll_transmit()) is not None:
            found.append(transmit)
        return found

    def wait(self, seconds: float) -> None:
        """The core's deadlines come and go."""
        end = self.now + seconds
        while (at := self.core.poll_timeout()) is not None and at <= end:
            self.now = at
            self.core.handle_timeout(self.now)
            self._take_events()
        self.now = end

    def _take_events(self) -> None:
        while (event := self.core.poll_event()) is not None:
            self.events.append(event)
