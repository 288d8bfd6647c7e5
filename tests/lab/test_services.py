"""Programs of other makes on machines of a laboratory: do they come up, and do what they are there for?"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from iceagent.lab import Egress, Lab, LabError, Machine, Router
from iceagent.lab.services import PROXY_PORT, Service, coturn, miniupnpd, nat64, serve, tinyproxy
from iceagent.nat.kinds import Filtering, Mapping

ROOT = Path(__file__).parents[2]


def arrives(sender: Machine, target: tuple[str, int], receiver: socket.socket) -> bool:
    with sender.namespace.socket() as sock:
        sock.sendto(b"x", target)
        return bool(select.select([receiver], [], [], 0.2)[0]) and bool(receiver.recv(100))


def nat_of(machine: Machine, server: Machine) -> tuple[str, str]:
    """What our own probe says of the NAT, asking one server by RFC 5780."""
    command = [sys.executable, "-m", "iceagent", "probe", "--json", "--server", f"stun:{server.address}"]
    process = machine.popen(command, stdout=-1, text=True, cwd=ROOT)
    out, _ = process.communicate()
    nat = json.loads(out)["nat"]
    return nat["mapping"], nat["filtering"]


def ours(machine: Machine) -> Service:
    return serve(machine, "--behaviour-discovery")


@pytest.mark.parametrize("start", [coturn, ours])
@pytest.mark.natlab_needs("turnserver")
def test_a_stun_server_with_two_addresses_does_rfc_5780(natlab: Lab, start: Callable[[Machine], Service]) -> None:
    server = natlab.machine("server", addresses=2)
    service = start(server)
    client = natlab.machine(behind=natlab.router("addr-restricted"))
    assert nat_of(client, server) == (Mapping.EIM.value, Filtering.ADF.value)
    service.restart()
    assert nat_of(client, server) == (Mapping.EIM.value, Filtering.ADF.value)


def test_a_program_that_ends_tells_why(natlab: Lab) -> None:
    machine = natlab.machine()
    with pytest.raises(LabError, match=r"sh on machine-1 ended with exit code 3; it said: no luck"):
        Service(machine, "sh", ["sh", "-c", "echo no luck; exit 3"], lambda: False)


@pytest.fixture
def home(natlab: Lab) -> tuple[Router, Machine, Machine]:
    router = natlab.router("port-restricted", ipv6="firewall")
    return router, natlab.machine("inside", behind=router), natlab.machine("stranger")


def maps(machine: Machine, router: Router, stranger: Machine, command: list[str], port: int) -> bool:
    """Whether a mapping of an outside port to 6000 lets a stranger in."""
    with machine.namespace.socket() as sock:
        sock.bind((machine.address, 6000))
        assert not arrives(stranger, (router.address, port), sock)
        try:
            machine.run(command)
        except LabError:
            return False
        return arrives(stranger, (router.address, port), sock)


@pytest.mark.natlab_needs("miniupnpd", "upnpc")
@pytest.mark.parametrize("is_igd1", [False, True])
def test_a_port_is_mapped_by_upnp(home: tuple[Router, Machine, Machine], is_igd1: bool) -> None:
    router, inside, stranger = home
    miniupnpd(router, is_igd1=is_igd1, nat_pmp=False)
    command = ["upnpc", "-m", "eth0", "-a", inside.address, "6000", "16000", "udp"]
    assert maps(inside, router, stranger, command, 16000)
    assert "[16000]" not in inside.run(["upnpc", "-m", "eth0", "-d", "16000", "udp"])


# A NAT-PMP mapping request (RFC 6886, 3.3): UDP, inside 6000, outside 16001, an hour.
NAT_PMP = (
    "import socket,struct,sys; s=socket.socket(2,2); s.settimeout(3); s.connect((sys.argv[1],5351));"
    "s.send(struct.pack('!BBHHHI',0,1,0,6000,16001,3600)); sys.exit(struct.unpack('!BBH',s.recv(99)[:4])[2])"
)


@pytest.mark.natlab_needs("miniupnpd")
@pytest.mark.parametrize("is_on", [True, False])
def test_a_port_is_mapped_by_nat_pmp(home: tuple[Router, Machine, Machine], is_on: bool) -> None:
    router, inside, stranger = home
    miniupnpd(router, nat_pmp=is_on, upnp=not is_on)
    assert maps(inside, router, stranger, [sys.executable, "-c", NAT_PMP, router.lan_address], 16001) is is_on


@pytest.mark.natlab_needs("tayga", "unbound")
@pytest.mark.parametrize("kind", ["port-restricted", "symmetric"])
def test_ipv6_alone_reaches_ipv4_by_names_and_by_prefix(natlab: Lab, kind: str) -> None:
    server = natlab.machine("server")
    router = natlab.router(kind, ipv6="firewall", is_ipv6_only=True)
    machine = natlab.machine("six", behind=router)
    natlab.names["old.lab"] = (server.address,)
    nat64(router)
    assert router.inside_host6 is not None
    machine.use_name_server(router.inside_host6)
    assert all(":" in host for host in machine.hosts)
    translated = "64:ff9b::1400:102"
    assert server.address == "20.0.1.2" and translated in machine.run(["getent", "ahostsv6", "old.lab"])
    # RFC 7050: how the prefix is discovered.
    assert "64:ff9b::c000:aa" in machine.run(["getent", "ahostsv6", "ipv4only.arpa"])
    with server.namespace.socket() as theirs, machine.namespace.socket(socket.AF_INET6) as ours:
        theirs.bind((server.address, 6000))
        ours.bind((machine.address, 5000))
        ours.sendto(b"x", (translated, 6000))
        assert select.select([theirs], [], [], 1.0)[0]
        data, source = theirs.recvfrom(100)
        assert (data, source[0]) == (b"x", router.address)
        assert (source[1] == 5000) is (kind == "port-restricted")
        theirs.sendto(b"back", source)
        assert select.select([ours], [], [], 1.0)[0] and ours.recv(100) == b"back"


@pytest.mark.natlab_needs("tinyproxy")
def test_where_only_a_proxy_leads_out(natlab: Lab) -> None:
    router = natlab.router(egress=Egress(udp_ports=(), tcp_ports=()))
    machine, server = natlab.machine(behind=router), natlab.machine()
    tinyproxy(router)
    with server.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind((server.address, 443))
        listening.listen()
        with machine.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as direct:
            direct.settimeout(0.3)
            with pytest.raises(TimeoutError):
                direct.connect((server.address, 443))
        for port, answer in ((443, b"200"), (3478, b"403")):
            with machine.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.settimeout(3)
                sock.connect((router.lan_address, PROXY_PORT))
                sock.sendall(f"CONNECT {server.address}:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert sock.recv(1000).split()[1] == answer


def test_a_missing_program_is_named(natlab: Lab) -> None:
    machine = natlab.machine()
    with pytest.raises(LabError, match="install Debian's package coturn"):
        Service(machine, "turnserver", ["turnserver"], lambda: False, env={"PATH": "/nonexistent"})
