"""The pump on real loops: its timer is not early, and does not spin on a loop whose clock is coarse."""

from __future__ import annotations

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.local import LocalHost
from tests.loopback.loops import LoopFactory, News, on_both_loops, run

ROUNDS = 20
# Not a whole number of milliseconds, so that uvloop's rounding shows.
STEP_S = 0.0033


class Ticker(News):
    """A core that wants to be called every 3.3 ms."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.due = start
        self.lateness: list[float] = []
        self.calls = 0

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Nothing arrives."""

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """Nothing fails."""

    def handle_timeout(self, now: float) -> None:
        self.calls += 1
        if now >= self.due:
            self.lateness.append(now - self.due)
            self.due += STEP_S
            self.tell()

    def poll_timeout(self) -> float | None:
        return None if len(self.lateness) == ROUNDS else self.due

    def poll_transmit(self) -> Transmit | None:
        return None

    def poll_event(self) -> Event | None:
        return None


@on_both_loops
def test_one_call_per_deadline(loop_factory: LoopFactory) -> None:
    async def main() -> Ticker:
        host = LocalHost()
        core = Ticker(host.now())

        def start(*, now: float) -> None:
            """The first command: it only lets the driver see the deadline."""

        driver = Driver(core, host, lambda _: 0, lambda _: None)
        driver.command(start)
        await core.until(lambda: len(core.lateness) == ROUNDS)
        driver.close()
        return core

    core = run(loop_factory, main())
    assert core.calls == ROUNDS
    assert min(core.lateness) >= 0
