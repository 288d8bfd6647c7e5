"""``punch`` through real NATs, and the lifetimes of their bindings."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from iceagent.config import Config
from iceagent.lab import KINDS, Kind, Lab, LabError, Machine
from iceagent.nat.kinds import Mapping
from iceagent.nat.punch_report import DataReceived, Lost, PunchOptions
from iceagent.nat.theory import can_meet
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.punch.far_end import FarEndServer
from iceagent.punch.punch import Punch, PunchFailed
from relay.stun import short_term_key

PORT = 3478
KEY = short_term_key("a secret of both")
# Those that let UDP out.
PUNCHABLE = [kind for kind in KINDS.values() if kind.mapping is not Mapping.UNKNOWN]
PAIRS = [(a, b) for number, a in enumerate(PUNCHABLE) for b in PUNCHABLE[number:]]


def far_end(machine: Machine, **options: Any) -> FarEndServer:
    return FarEndServer(machine.host, config=Config(port_range=(PORT, PORT), loopback=True), **options)


async def an_end(
    stack: AsyncExitStack,
    machine: Machine,
    server: TransportAddress,
    options: PunchOptions,
    hear: Callable[[Event], None],
) -> tuple[Punch, TransportAddress]:
    """One end, and where a server sees it.

    A router of the kind addr-symmetric chooses one of 2,000 ports by a hash: of two sockets to which it gives the same
    one, the server never hears the later one. Then there is another socket.
    """
    for _ in range(3):
        end = await stack.enter_async_context(Punch(machine.host, options, on_event=hear))
        with suppress(PunchFailed):
            return end, (await end.ask(server)).mapped
    raise AssertionError(f"{server} answers nothing that {machine} sends")


async def both_meet(machines: Sequence[Machine], server: TransportAddress, options: PunchOptions) -> bool:
    """Whether two machines meet at the addresses that a server sees, and talk both ways."""
    loop = asyncio.get_running_loop()
    heard: list[asyncio.Future[bytes]] = [loop.create_future(), loop.create_future()]

    def hear(number: int) -> Callable[[Event], None]:
        def on_event(event: Event) -> None:
            if isinstance(event, DataReceived):
                heard[number].set_result(event.data)

        return on_event

    async with AsyncExitStack() as stack:
        found = [await an_end(stack, machine, server, options, hear(number)) for number, machine in enumerate(machines)]
        ends, mapped = zip(*found, strict=True)
        results = await asyncio.gather(
            *(end.meet([address]) for end, address in zip(ends, reversed(mapped), strict=True)),
            return_exceptions=True,
        )
        if any(isinstance(result, PunchFailed) for result in results):
            return False
        for number, end in enumerate(ends):
            assert end.send(b"from %d" % number) == 0
        async with asyncio.timeout(5.0):
            assert await asyncio.gather(*heard) == [b"from 1", b"from 0"]
        return True


async def test_every_pair_that_can_meet_does(natlab: Lab) -> None:
    """By theory: with a key, whoever can meet without guessing; without one, who is where the server sees him."""
    server = natlab.machine("server")
    homes = [{kind: natlab.machine(behind=natlab.router(kind.name)) for kind in PUNCHABLE} for _ in range(2)]
    address = TransportAddress(server.address, PORT)

    async def judge(a: Kind, b: Kind, *, has_key: bool) -> str | None:
        known = all(kind.mapping is Mapping.EIM for kind in (a, b))
        expected = can_meet((a.mapping, a.filtering), (b.mapping, b.filtering)) if has_key else known
        # The two begin in one process, but not at one moment: a machine under load is slow.
        options = PunchOptions(key=KEY if has_key else None, lead_s=1.0, timeout_s=20.0 if expected else 3.0)
        met = await both_meet((homes[0][a], homes[1][b]), address, options)
        return None if met is expected else f"{a.name} and {b.name}: {'met' if met else 'did not meet'}, {has_key=}"

    async with far_end(server):
        wrong: list[str] = []
        # Half of them at a time: nobody is to wait for the processor, and not all for those who wait in vain.
        for start in (0, 1):
            some = [judge(a, b, has_key=key) for a, b in PAIRS[start::2] for key in (False, True)]
            wrong += [line for line in await asyncio.gather(*some) if line is not None]
    assert wrong == []


async def test_firewalls_and_carriers_in_between(natlab: Lab) -> None:
    """IPv6 firewalls face each other, and nobody is translated; of IPv4, one end is behind a carrier's NAT as well."""
    server = natlab.machine("server")
    carrier = natlab.router("port-restricted", is_carrier=True)
    machines = [
        natlab.machine(behind=natlab.router("port-restricted", ipv6="firewall")),
        natlab.machine(behind=natlab.router("port-restricted-naive", ipv6="firewall")),
        natlab.machine(behind=natlab.router("port-restricted", behind=carrier)),
    ]
    options = PunchOptions(lead_s=0.5)
    (host6,) = server.hosts_of(6)
    async with far_end(server):
        for address, ends in (
            (TransportAddress(host6, PORT), machines[:2]),
            (TransportAddress(server.address, PORT), machines[1:]),
        ):
            assert await both_meet(ends, address, options)


# --- the command -----------------------------------------------------------------------------------------------------


class Process:
    """``iceagent punch --json`` on a machine."""

    def __init__(self, machine: Machine, *words: str) -> None:
        command = [sys.executable, "-m", "iceagent", "punch", "--json", *words]
        self.process = machine.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        assert self.process.stdout is not None
        while line := await asyncio.to_thread(self.process.stdout.readline):
            found: dict[str, Any] = json.loads(line)
            if found["event"] == name:
                return found
        raise AssertionError(f"no {name}")

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    async def end(self) -> int:
        return await asyncio.to_thread(self.process.wait, 20.0)


@pytest.mark.parametrize(
    ("kinds", "late_s"),
    [
        (("port-restricted", "eim-random"), 0.0),
        (("firewall", "port-restricted"), 0.0),
        # The early-packet trap, and two people.
        (("port-restricted-naive", "port-restricted-naive"), 1.0),
    ],
)
async def test_two_people_paste_each_others_address(natlab: Lab, kinds: tuple[str, str], late_s: float) -> None:
    server = natlab.machine("server")
    async with far_end(server):
        words = ("-", "--server", f"stun:{server.address}", "--stdio", "--duration", "15")
        ends = [Process(natlab.machine(behind=natlab.router(kind)), *words) for kind in kinds]
        mapped = [(await end.event("punch.mapped"))["mapped"] for end in ends]
        ends[0].type(mapped[1])
        await asyncio.sleep(late_s)
        ends[1].type(mapped[0])
        for number, end in enumerate(ends):
            answered = await end.event("punch.answered")
            assert (answered["address"], answered["mapped"]) == (mapped[1 - number], mapped[number])
            end.type(f"hello from {number}")
        for number, end in enumerate(ends):
            assert (await end.event("punch.received"))["data"] == f"hello from {1 - number}"
        for end in ends:
            assert end.process.stdin is not None
            end.process.stdin.close()
        for end in ends:
            summary = await end.event("summary")
            assert (summary["data_sent"], summary["data_received"], summary["losses"]) == (1, 1, 0)
            assert await end.end() == 0


async def test_a_pair_that_cannot_meet_is_told_before_it_tries_and_after_its_time(natlab: Lab) -> None:
    servers = [natlab.machine(), natlab.machine()]
    async with far_end(servers[0]), far_end(servers[1]):
        words = ["-", "--timeout", "3", "--lead", "0.1"]
        for server in servers:
            words += ["--server", f"stun:{server.address}"]
        ends = [Process(natlab.machine(behind=natlab.router("symmetric")), *words) for _ in range(2)]
        mapped = [(await end.event("punch.mapped"))["mapped"] for end in ends]
        for end, ours in zip(ends, mapped, strict=True):
            other = await end.event("punch.symmetric")
            assert other["server"] == f"{servers[1].address}:{PORT}" and other["mapped"] != ours
        for end, other_end in zip(ends, reversed(mapped), strict=True):
            end.type(other_end)
        for end, other_end in zip(ends, reversed(mapped), strict=True):
            assert (await end.event("punch.failed"))["reason"].startswith(other_end)
            assert await end.end() == 4


@pytest.mark.parametrize("words", [(), ("--stdio",)], ids=["serve", "serve one"])
async def test_a_far_end_follows_the_addresses_of_its_machine(natlab: Lab, words: tuple[str, ...]) -> None:
    server, client = natlab.machine(), natlab.machine(behind=natlab.router("port-restricted"))
    later = "20.77.0.2"
    far = Process(server, "--serve", *words)
    ready = set((await far.event("punch.ready"))["local"])
    assert {f"{server.address}:{PORT}", f"127.0.0.1:{PORT}"} <= ready
    server.namespace.add_address("eth0", f"{later}/32")
    natlab.internet.namespace.ip(f"route replace {later}/32 via {server.address}")
    assert set((await far.event("punch.addresses"))["local"]) == ready | {f"{later}:{PORT}"}
    async with Punch(client.host, PunchOptions()) as punch:
        answered = await punch.meet([TransportAddress(later, PORT)])
        assert answered.path.remote.host == later
        server.namespace.delete_address("eth0", f"{later}/32")
        assert set((await far.event("punch.addresses"))["local"]) == ready
    far.process.terminate()
    assert await far.end() == 0


# --- how long it lives ----------------------------------------------------------------------------------------------


async def test_keepalives_hold_a_binding_and_tell_when_it_is_lost(natlab: Lab) -> None:
    server = natlab.machine("server")
    router = natlab.router("port-restricted", lifetime_s=4, needs_answers=True)
    lost: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()

    def on_event(event: Event) -> None:
        if isinstance(event, Lost):
            lost.set_result(event)

    async with far_end(server):
        options = PunchOptions(keepalive_s=1.5)
        async with Punch(natlab.machine(behind=router).host, options, on_event=on_event) as punch:
            await punch.meet([TransportAddress(server.address, PORT)])
            await asyncio.sleep(5.0)
            assert not lost.done()
            old = router.address
            await asyncio.to_thread(router.move)
            async with asyncio.timeout(5.0):
                reason = (await lost).reason
            assert reason.startswith(f"it saw us at {old}:") and f"now at {router.address}:" in reason


@pytest.mark.parametrize(
    ("needs_answers", "is_answered", "lives"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_the_router_that_only_answers_refresh(natlab: Lab, needs_answers: bool, is_answered: bool, lives: bool) -> None:
    """Seen by plain sockets: a packet every 0.3 s for 3 s, and a lifetime of two."""
    router = natlab.router("port-restricted", lifetime_s=2, needs_answers=needs_answers)
    machine, server = natlab.machine(behind=router), natlab.machine()
    with machine.namespace.socket() as ours, server.namespace.socket() as theirs:
        for sock, host in ((ours, machine.address), (theirs, server.address)):
            sock.bind((host, 5000))
            sock.settimeout(0.5)
        for number in range(10):
            ours.sendto(b"beat", (server.address, 5000))
            if number == 0 or is_answered:
                theirs.sendto(b"answer", theirs.recvfrom(10)[1])
                assert ours.recv(10) == b"answer"
            time.sleep(0.3)
        theirs.sendto(b"alive?", (router.address, 5000))
        if lives:
            assert ours.recv(10) == b"alive?"
        else:
            with pytest.raises(TimeoutError):
                ours.recv(10)


def test_a_cone_has_one_lifetime(natlab: Lab) -> None:
    with pytest.raises(LabError, match="has one lifetime, whether somebody answers or not"):
        natlab.router("full-cone", unanswered_lifetime_s=5)
