"""Machines, cables and events: what the kernel makes of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from iceagent.lab import Egress, Impairment, Lab, LabError, Machine, MissingProgram, Router
from iceagent.lab.classify import lifetime_s
from iceagent.lab.owner import VARIABLE, Owner, sweep
from iceagent.lab.session import run_inside
from iceagent.lab.wire import IN, OUT
from iceagent.net.address import TransportAddress
from iceagent.net.host import AddressFlag
from relay.server import Server

ROOT = Path(__file__).parents[2]
WAIT_S = 0.2


@contextlib.contextmanager
def bound(machine: Machine, port: int, host: str | None = None) -> Iterator[socket.socket]:
    with machine.namespace.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((host or machine.address, port))
        yield sock


def take(sock: socket.socket, wait_s: float = WAIT_S) -> tuple[bytes, tuple[str, int]] | None:
    ready, _, _ = select.select([sock], [], [], wait_s)
    return sock.recvfrom(2000) if ready else None


def passes(sender: socket.socket, receiver: socket.socket) -> bool:
    sender.sendto(b"x", receiver.getsockname())
    return take(receiver) is not None


def seen_as(sender: socket.socket, receiver: socket.socket) -> tuple[str, int]:
    sender.sendto(b"x", receiver.getsockname())
    taken = take(receiver)
    assert taken is not None
    return taken[1]


# --- what stands -----------------------------------------------------------------------------------------------------


def test_two_clients_behind_two_nats_and_a_server_stand_soon(natlab: Lab) -> None:
    """Issue: in 0.3 s; here the parts are counted, and each is a netlink message or one run of nft."""
    alice = natlab.machine("alice", behind=natlab.router("port-restricted"))
    bob = natlab.machine("bob", behind=natlab.router("symmetric"))
    server = natlab.machine("server", addresses=2)
    assert alice.address == bob.address == "192.168.1.2"
    assert len({host for host in server.hosts if ":" not in host}) == 2
    for client in (alice, bob):
        client.run(["ping", "-c", "1", "-W", "1", server.address])


def test_two_laboratories_side_by_side(natlab: Lab) -> None:
    with Lab() as other:
        first, second = (each.machine("server") for each in (natlab, other))
        assert first.address == second.address
        with bound(first, 1000), bound(second, 1000):
            # The same address and port twice: they do not know of each other.
            pass


def test_a_ttl_ends_between_two_nats(natlab: Lab) -> None:
    """An opener of two hops passes our own router and dies on the way; one of four arrives at the other's."""
    routers = [natlab.router("port-restricted-naive") for _ in range(2)]
    machines = [natlab.machine(behind=router) for router in routers]
    with bound(machines[0], 5000) as ours, bound(routers[1], 5000) as theirs:
        for ttl, arrives in ((2, False), (3, True)):
            ours.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            assert passes(ours, theirs) is arrives


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "a\nb", "-a", "a" * 64])
def test_names_that_are_none(natlab: Lab, name: str) -> None:
    with pytest.raises(LabError, match="is no name for a machine"):
        natlab.machine(name)


@pytest.mark.parametrize("command", ["ls -l", b"ls", []])
def test_commands_that_are_none(natlab: Lab, command: Any) -> None:
    machine = natlab.machine()
    for start in (machine.run, machine.popen):
        with pytest.raises(TypeError, match="a command is a list"):
            start(command)


def test_what_nothing_can_be_plugged_into(natlab: Lab) -> None:
    alice = natlab.machine("alice")
    others: list[Any] = [alice, "full-cone-1", natlab]
    for other in others:
        with pytest.raises(LabError, match="a machine is plugged into a router, or into the laboratory's internet"):
            natlab.machine("bob", behind=other)
        with pytest.raises(LabError, match="is plugged into a router"):
            natlab.router(behind=other)
        with pytest.raises(LabError, match="is plugged into a router"):
            alice.roam(other)
    natlab.machine("bob").run(["ping", "-c", "1", "-W", "1", alice.address])


@pytest.mark.parametrize("values", [{"udp_ports": (99999,)}, {"tcp_ports": (0,)}, {"tcp_ports": ("http",)}])
def test_ports_that_are_none(values: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="a port is a number from 1 to 65535, not"):
        Egress(**values)


def test_what_it_is_called_where_it_is_shown(natlab: Lab) -> None:
    router = natlab.router("symmetric", "home")
    assert repr(router) == f"<Router home {router.address}>"
    assert repr(natlab.machine("alice", behind=router)) == "<Machine alice 192.168.1.2>"
    assert repr(natlab) == "<Lab of internet, home, alice>"


# --- names -----------------------------------------------------------------------------------------------------------


def test_programs_know_the_names_of_machines(natlab: Lab) -> None:
    alice = natlab.machine("alice", behind=natlab.router())
    server = natlab.machine("server")
    for _ in range(2):
        found = alice.run(["getent", "ahostsv4", "server.lab"])
        assert found.split()[0] == server.address
        server.roam(natlab.router("firewall"))


def test_programs_ask_no_name_server_but_the_given_one(natlab: Lab) -> None:
    alice = natlab.machine("alice")
    assert "nameserver" not in alice.run(["cat", "/etc/resolv.conf"])
    alice.use_name_server("20.0.1.9")
    assert alice.run(["cat", "/etc/resolv.conf"]) == "nameserver 20.0.1.9\n"
    with pytest.raises(LabError, match="'ns' is no IP address"):
        alice.use_name_server("ns")
    # And only there.
    assert "20.0.1.9" not in natlab.machine("bob").run(["cat", "/etc/resolv.conf"])
    assert "20.0.1.9" not in Path("/etc/resolv.conf").read_text()


def test_a_loop_inside_looks_names_up_inside(natlab: Lab) -> None:
    server = natlab.machine("server")
    alice = natlab.machine("alice")

    async def look() -> tuple[str, list[Any]]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo("server.lab", 1, family=socket.AF_INET, type=socket.SOCK_DGRAM)
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("elsewhere.example", 1)
        return os.getcwd(), [address for *_, address in found]

    assert run_inside(alice, look).result() == (os.getcwd(), [(server.address, 1)])


def test_programs_begin_in_the_callers_folder(natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = natlab.machine("alice")
    monkeypatch.chdir(tmp_path)
    assert alice.run(["pwd"]).strip() == str(tmp_path)
    with alice.popen(["pwd"], stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0].strip() == str(tmp_path)


def test_a_host_needs_a_loop(natlab: Lab) -> None:
    with pytest.raises(LabError, match="belongs to a running asyncio loop"):
        _ = natlab.machine("alice").host


def test_a_forked_child_leaves_it_alone(natlab: Lab) -> None:
    machine = natlab.machine("alice")
    pid = os.fork()
    if pid == 0:
        natlab.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    machine.run(["ping", "-c", "1", "-W", "1", machine.address])


def test_a_closed_laboratory_takes_nothing_more() -> None:
    lab = Lab()
    lab.machine()
    lab.close()
    lab.close()
    with pytest.raises(LabError, match="closed"):
        lab.machine()


def test_names_and_wrong_values(natlab: Lab) -> None:
    natlab.machine("alice")
    with pytest.raises(LabError, match="there is a 'alice' already"):
        natlab.machine("alice")
    with pytest.raises(LabError, match="no kind of router called 'cone'; there are open, firewall"):
        natlab.router("cone")
    with pytest.raises(LabError, match="needs public addresses"):
        natlab.router("firewall", behind=natlab.router("symmetric"))
    with pytest.raises(LabError, match="cannot get one"):
        _ = natlab.machine("bob").wire
    with pytest.raises(MissingProgram, match="nonesuch is not installed"):
        natlab.machine().run(["nonesuch"])
    with pytest.raises(LabError, match="/etc/passwd could not be started: Permission denied"):
        natlab.machine().popen(["/etc/passwd"])
    with pytest.raises(LabError, match="1 to 120 IPv4 addresses, not 0"):
        natlab.machine(addresses=0)
    with pytest.raises(LabError, match="there is a 'ALICE' already"):
        natlab.machine("ALICE")
    with pytest.raises(LabError, match="whole number of seconds, 1 to 1000000, not 0"):
        natlab.router(lifetime_s=0)
    with pytest.raises(LabError, match="no address 500 above that"):
        natlab.router().move(500)
    with pytest.raises(LabError, match=r"9.9.9.9 is no IPv6 address of"):
        natlab.machine().deprecate("9.9.9.9")
    with pytest.raises(LabError, match="exit 3"):
        natlab.machine().run(["sh", "-c", "exit 3"])


# --- IPv6 and policies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "lets_in"), [("firewall", False), ("open", True)])
def test_ipv6_behind_a_router(natlab: Lab, policy: str, lets_in: bool) -> None:
    machine = natlab.machine(behind=natlab.router("symmetric", ipv6=policy))
    server = natlab.machine()
    ours, theirs = (each.namespace.socket(socket.AF_INET6) for each in (machine, server))
    with ours, theirs:
        ours.bind((machine.hosts[1], 5000))
        theirs.bind((server.hosts[1], 6000))
        assert passes(theirs, ours) is lets_in
        assert seen_as(ours, theirs)[:2] == (machine.hosts[1], 5000)
        assert passes(theirs, ours)


def test_what_is_let_out(natlab: Lab) -> None:
    server = natlab.machine()
    blocked = natlab.machine()
    egress = Egress(udp_ports=(53, 443), blocked=(blocked.address,))
    machine = natlab.machine(behind=natlab.router("port-restricted", egress=egress))
    with bound(machine, 5000) as ours:
        for target, port, arrives in (
            (server, 53, True),
            (server, 443, True),
            (server, 80, False),
            (blocked, 53, False),
        ):
            with bound(target, port) as theirs:
                assert passes(ours, theirs) is arrives, port


# --- events ----------------------------------------------------------------------------------------------------------


def test_a_reboot_forgets(natlab: Lab) -> None:
    router, server = natlab.router("symmetric"), natlab.machine()
    machine = natlab.machine(behind=router)
    with bound(machine, 5000) as ours, bound(server, 6000) as theirs:
        before = seen_as(ours, theirs)
        assert seen_as(ours, theirs) == before
        router.reboot()
        theirs.sendto(b"x", before)
        assert take(ours) is None
        assert seen_as(ours, theirs) != before


def test_another_outside_address(natlab: Lab) -> None:
    router, server = natlab.router("full-cone"), natlab.machine()
    machine = natlab.machine(behind=router)
    with bound(machine, 5000) as ours, bound(server, 6000) as theirs:
        before = seen_as(ours, theirs)
        new = router.move()
        assert seen_as(ours, theirs) == (new, 5000) != before


def test_a_firewall_opens_and_closes(natlab: Lab) -> None:
    router, server = natlab.router("firewall"), natlab.machine()
    machine = natlab.machine(behind=router)
    for port, is_open in ((5000, False), (5001, True), (5002, False)):
        router.open_firewall(is_open=is_open)
        with bound(machine, port) as ours, bound(server, port) as theirs:
            assert passes(theirs, ours) is is_open


def test_a_link_that_flaps(natlab: Lab) -> None:
    server = natlab.machine()
    machine = natlab.machine(behind=natlab.router())
    with bound(machine, 5000) as ours, bound(server, 6000) as theirs:
        assert passes(ours, theirs)
        machine.set_link(is_up=False)
        with pytest.raises(OSError):
            ours.sendto(b"x", theirs.getsockname())
        machine.set_link(is_up=True)
        natlab.wait_until(lambda: passes(ours, theirs), 3.0, "the link is not back")


def test_a_lifetime_that_is_shortened(natlab: Lab) -> None:
    router, server = natlab.router("full-cone"), natlab.machine("server", addresses=2)
    machine = natlab.machine(behind=router)
    assert lifetime_s(machine, server, 1.6, step_s=0.8) is None
    router.set_lifetime(1)
    assert lifetime_s(machine, server, 2.4, step_s=0.8) in (0.8, 1.6, pytest.approx(2.4))


async def test_an_address_that_is_deprecated(natlab: Lab) -> None:
    """RFC 4862, 5.5.4. The host says so, as this machine's would."""
    machine = natlab.machine(behind=natlab.router(ipv6="firewall"))
    machine.deprecate(machine.hosts[1])
    (interface,) = [each for each in await machine.host.interfaces() if each.name == "eth0"]
    flags = {address.host: address.flags for address in interface.addresses}
    assert flags[machine.hosts[1]] == {AddressFlag.DEPRECATED} and not flags[machine.hosts[0]]


def test_roaming(natlab: Lab) -> None:
    """To another home: another address inside and outside."""
    homes = [natlab.router("port-restricted") for _ in range(2)]
    server = natlab.machine()
    machine = natlab.machine(behind=homes[0])
    with bound(server, 6000) as theirs:
        for home in homes:
            with bound(machine, 0, "0.0.0.0") as ours:
                assert seen_as(ours, theirs)[0] == home.address
            machine.roam(homes[1])


# --- cables ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends(natlab: Lab) -> Iterator[tuple[Router, socket.socket, socket.socket]]:
    """A router whose cable can be impaired, a socket behind it, and one on the Internet."""
    router = natlab.router("open", impairment=Impairment())
    machine, server = natlab.machine(behind=router), natlab.machine()
    with bound(machine, 5000) as ours, bound(server, 6000) as theirs:
        yield router, ours, theirs


def arrived(sender: socket.socket, receiver: socket.socket, count: int) -> list[int]:
    """Numbers in the order in which they arrived."""
    for number in range(count):
        sender.sendto(b"%d" % number, receiver.getsockname())
    found = []
    while (taken := take(receiver)) is not None:
        found.append(int(taken[0]))
    return found


def test_a_delay_is_in_one_direction_or_both(ends: tuple[Router, socket.socket, socket.socket]) -> None:
    router, ours, theirs = ends

    def rtt_s() -> float:
        found = []
        for _ in range(5):
            started = time.perf_counter()
            source = seen_as(ours, theirs)
            theirs.sendto(b"back", source)
            assert take(ours) is not None
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    router.wire.set(Impairment(delay_s=0.02), OUT)
    one_way_s = rtt_s()
    router.wire.set(Impairment(delay_s=0.02))
    assert one_way_s >= 0.02 and rtt_s() >= 0.04


def test_loss_is_in_one_direction(ends: tuple[Router, socket.socket, socket.socket]) -> None:
    router, ours, theirs = ends
    router.wire.set(Impairment(loss=0.25), OUT)
    assert 100 <= len(arrived(ours, theirs, 200)) <= 185
    assert len(arrived(theirs, ours, 200)) == 200


def test_duplication_and_reordering(ends: tuple[Router, socket.socket, socket.socket]) -> None:
    router, ours, theirs = ends
    router.wire.set(Impairment(duplicate=0.5))
    found = arrived(ours, theirs, 100)
    assert 120 <= len(found) <= 180 and found == sorted(found)
    router.wire.set(Impairment(delay_s=0.02, reorder=0.2))
    found = arrived(ours, theirs, 100)
    assert sorted(found) == list(range(100)) != found


def test_a_rate_and_a_cut(ends: tuple[Router, socket.socket, socket.socket]) -> None:
    router, ours, theirs = ends
    router.wire.set(Impairment(rate_bps=1e6))
    started = time.perf_counter()
    for _ in range(20):
        ours.sendto(bytes(1200), theirs.getsockname())
    for _ in range(20):
        assert take(theirs) is not None
    # 20 × 1,242 bytes at a megabit a second.
    assert time.perf_counter() - started >= 0.19
    router.wire.cut(IN)
    assert passes(ours, theirs) and not passes(theirs, ours)
    router.wire.set(Impairment())
    assert passes(theirs, ours)


@pytest.mark.parametrize(
    "values",
    [
        {"loss": 1.1},
        {"loss": math.nan},
        {"reorder": -0.1},
        {"delay_s": -1.0},
        {"delay_s": math.nan},
        {"jitter_s": math.inf},
        {"rate_bps": 0.0},
        {"rate_bps": math.nan},
    ],
)
def test_impairments_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Impairment(**values)


def test_a_cable_with_a_dead_process_or_a_wrong_direction_is_told_and_closes_all_the_same() -> None:
    with Lab() as lab:
        router = lab.router("open", impairment=Impairment())
        with pytest.raises(ValueError, match="directions"):
            router.wire.set(Impairment(), "sideways")
        router.wire.set(Impairment(loss=0.1))
        router.wire.process.kill()
        router.wire.process.wait()
        with pytest.raises(OSError):
            router.wire.set(Impairment())
        folder = lab.folder
    assert not folder.exists()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("lab ")]


# --- hosts and programs ----------------------------------------------------------------------------------------------


async def test_a_host_has_udp_tcp_names_and_interfaces(natlab: Lab) -> None:
    server = natlab.machine("server")
    client = natlab.machine("client", behind=natlab.router())
    address = TransportAddress(server.address, 3478)
    async with Server(server.host, [address]) as running:
        assert await client.host.resolve("server.lab") == server.hosts
        with pytest.raises(OSError, match="no machine 'nobody"):
            await client.host.resolve("nobody.lab")
        assert {interface.name for interface in await client.host.interfaces()} == {"lo", "eth0"}
        assert client.host.source_host(address) == client.address
        with pytest.raises(OSError):
            await client.host.connect_tcp(address._replace(port=1), Deaf())
        stream = await client.host.connect_tcp(address, Deaf())
        assert stream.local_address.host == client.address
        stream.close()
        assert len(running.listeners) == 2


class Deaf:
    def data_received(self, stream: object, data: bytes) -> None:
        """Nothing comes."""

    def connection_lost(self, stream: object, errno: int) -> None:
        """It was closed."""


async def test_any_asyncio_program_runs_inside(natlab: Lab) -> None:
    machine = natlab.machine(behind=natlab.router())

    async def main() -> str:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=(machine.address, 0)
        )
        host: str = transport.get_extra_info("sockname")[0]
        transport.close()
        return host

    assert await asyncio.wrap_future(run_inside(machine, main)) == machine.address


def test_programs_end_with_the_laboratory() -> None:
    with Lab() as lab:
        machine = lab.machine()
        process = machine.popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        folder = lab.folder
        os.kill(grandchild, 0)
    assert not folder.exists() and process.returncode is not None
    assert not is_running(grandchild)


@pytest.mark.parametrize(
    "command",
    [
        ("sh", "-c", "trap '' TERM; echo $$; while :; do sleep 1; done"),
        ("env", "-i", "setsid", "sh", "-c", "echo $$; sleep 1000"),
    ],
)
def test_programs_that_do_not_want_to_end(command: tuple[str, ...]) -> None:
    """One that ignores what it is told, and one that threw our mark away."""
    with Lab() as lab:
        process = lab.machine().popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        pid = int(process.stdout.readline())
    assert not is_running(pid)


@pytest.mark.parametrize(
    "mark", ["1." + "1" * 5000 + ".x", "", "1.2.3.4.5", "ä.1.1.1", f"{os.stat('/proc/self/ns/pid').st_ino}.1.1"]
)
def test_marks_that_are_none_disturb_nobody(mark: str) -> None:
    process = subprocess.Popen(["sleep", "1000"], env={VARIABLE: mark, "PATH": os.environ["PATH"]})
    try:
        sweep()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_laboratories_made_side_by_side_know_their_own() -> None:
    with ThreadPoolExecutor(4) as pool:
        owners = list(pool.map(lambda _: Owner(), range(40)))
    assert len({owner.mark for owner in owners}) == 40
    for owner in owners:
        owner.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


KILLED = """
import os, signal, subprocess
from iceagent.lab import Lab
lab = Lab()
machine = lab.machine()
process = machine.popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(lab.folder, process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_laboratory_left_is_swept_by_the_next() -> None:
    found = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False, cwd=ROOT)
    folder, pid = found.stdout.split()
    assert Path(folder).exists() and is_running(int(pid))
    with Lab() as lab:
        assert not Path(folder).exists() and not is_running(int(pid))
        mine = lab.machine().popen(["sleep", "1000"])
        # What belongs to the living is left alone.
        sweep()
        assert lab.folder.exists() and mine.poll() is None
    assert VARIABLE not in os.environ
