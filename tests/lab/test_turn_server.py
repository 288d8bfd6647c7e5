"""Our TURN server, and the clients of others; ours against it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iceagent import Agent, IceServer, RelayMoved, serve
from iceagent.lab import Lab, Machine
from iceagent.lab.session import run_inside
from iceagent.net.address import TransportAddress
from relay.server import Server, ServerOptions, server_ssl_context
from tests.certificates import make_certificate
from tests.lab.test_relays import USERS, call, home, relay

USER, PASSWORD = next(iter(USERS.items()))


def on(machine: Machine, *ports: int, **options: Any) -> Server:
    listen = [TransportAddress(host, port) for port in ports or (3478,) for host in machine.hosts]
    return serve(listen, users=USERS, host=machine.host, **options)


# --- coturn's client -------------------------------------------------------------------------------------------------


async def uclient(machine: Machine, *words: str) -> tuple[int, int]:
    """Run ``turnutils_uclient``; the messages that it sent and got back."""
    command = ["timeout", "60", "turnutils_uclient", "-u", USER, "-w", PASSWORD, "-z", "5", *words]
    process = machine.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = await asyncio.to_thread(process.communicate)
    # Its exit code is 0 even when packets were lost.
    totals = [line for line in out.splitlines() if "tot_send_msgs=" in line]
    assert process.returncode == 0 and totals, out[-2000:]
    numbers = [int(word.rpartition("=")[2].rstrip(",")) for word in totals[-1].split() if word.startswith("tot_")]
    return numbers[0], numbers[1]


@pytest.mark.natlab_needs("turnutils_uclient", "turnutils_peer")
@pytest.mark.parametrize(
    "words",
    [(), ("-s",), ("-t",), ("-t", "-s"), ("-y",), ("-y", "-t"), ("-m", "10"), ("-c",), ("-l", "1200"), ("-x",)],
    ids=[
        "UDP",
        "Send",
        "TCP",
        "Send over TCP",
        "client to client",
        "the same over TCP",
        "ten",
        "no RTCP",
        "long",
        "v6",
    ],
)
async def test_all_packets_of_coturns_client_come_back(natlab: Lab, words: tuple[str, ...]) -> None:
    server, peer, client = natlab.machine("server"), natlab.machine("peer"), natlab.machine("client")
    address = peer.hosts_of(6)[0] if "-x" in words else peer.address
    peer.popen(["turnutils_peer", "-L", address, "-p", "3480"], stdout=subprocess.DEVNULL)
    async with on(server) as running:
        sent, received = await uclient(client, "-e", address, "-r", "3480", "-n", "40", *words, server.address)
        assert received == sent > 0
        assert running.turn_counters["requests"] > 0


@pytest.mark.natlab_needs("turnutils_uclient", "turnutils_peer")
async def test_coturns_client_over_tls(natlab: Lab, tmp_path: Path) -> None:
    server, peer, client = natlab.machine("server"), natlab.machine("peer"), natlab.machine("client")
    peer.popen(["turnutils_peer", "-L", peer.address, "-p", "3480"], stdout=subprocess.DEVNULL)
    certificate, key = make_certificate(tmp_path, "server.lab")
    options = ServerOptions(tls=server_ssl_context(str(certificate), str(key)))
    async with on(server, options=options):
        words = ("-t", "-S", "-p", "5349", "-e", peer.address, "-r", "3480", "-n", "40", server.address)
        sent, received = await uclient(client, *words)
        assert received == sent > 0


@pytest.mark.natlab_needs("turnutils_uclient")
@pytest.mark.parametrize(
    "words",
    [("-T",), ("-T", "-m", "4"), ("-T", "-l", "1200"), ("-T", "-x"), ("-T", "-S", "-p", "5349")],
    ids=["TCP", "four", "long", "v6", "TLS"],
)
async def test_all_of_coturns_client_comes_back_over_tcp_relays(
    natlab: Lab, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """RFC 6062: clients connect to each other's relayed addresses."""
    server, client = natlab.machine("server"), natlab.machine("client")
    certificate, key = make_certificate(tmp_path, "server.lab")
    options = ServerOptions(tls=server_ssl_context(str(certificate), str(key)))
    async with on(server, options=options) as running:
        sent, received = await uclient(client, *words, "-n", "40", server.address)
        assert received == sent > 0
        (packets, octets), (_, back) = running.relayed()
        assert packets > 0 and octets == back > 0


# --- aioice's, and ours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_aioices_client(natlab: Lab, transport: str) -> None:
    import aioice

    server = natlab.machine("server")
    homes = home(natlab, "symmetric"), home(natlab, "symmetric")
    told: list[asyncio.Future[Any]] = []

    async with on(server) as running:
        loop = asyncio.get_running_loop()
        told = [loop.create_future(), loop.create_future()]

        def tell(number: int, value: Any) -> None:
            loop.call_soon_threadsafe(told[number].set_result, value)

        def other(number: int) -> Any:
            async def wait() -> Any:
                return await told[number]

            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(wait(), loop))

        async def play(number: int) -> bytes:
            connection = aioice.Connection(
                ice_controlling=number == 0,
                turn_server=(server.address, 3478),
                turn_username=USER,
                turn_password=PASSWORD,
                turn_transport=transport,
                use_ipv6=False,
                transport_policy=aioice.TransportPolicy.RELAY,
            )
            await connection.gather_candidates()
            tell(number, (connection.local_username, connection.local_password, connection.local_candidates))
            connection.remote_username, connection.remote_password, candidates = await other(1 - number)
            for candidate in candidates:
                await connection.add_remote_candidate(candidate)
            await connection.add_remote_candidate(None)
            await connection.connect()
            await connection.send(b"from %d" % number)
            data: bytes = await connection.recv()
            await asyncio.sleep(0.1)
            await connection.close()
            return data

        playing = [asyncio.wrap_future(run_inside(homes[i], lambda i=i: play(i))) for i in (0, 1)]  # type: ignore[misc]
        assert await asyncio.wait_for(asyncio.gather(*playing), 20.0) == [b"from 1", b"from 0"]
        assert running.turn_counters["requests"] > 0


@pytest.mark.parametrize("url", ["turn:{}?transport=udp", "turn:{}?transport=tcp", "turn:{}", "turns:server.lab:5349"])
async def test_our_client(natlab: Lab, tmp_path: Path, url: str) -> None:
    server = natlab.machine("server")
    certificate, key = make_certificate(tmp_path, "server.lab")
    options = ServerOptions(tls=server_ssl_context(str(certificate), str(key)))
    config = relay(server, url, ssl_context=ssl.create_default_context(cafile=str(certificate)))
    async with on(server, options=options) as running:
        async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), config) as made:
            paths = await made.connect()
            assert [path.kind for path in paths] == ["relay", "relay"]
            await made.talk()
            assert running.allocations == 2
        # Given back.
        await asyncio.wait_for(running.drain(), 2.0)
        assert running.allocations == 0


async def test_both_families_of_one_allocation(natlab: Lab) -> None:
    server = natlab.machine("server")
    async with on(server), Agent(relay(server, ipv6=True), controlling=True, host=home(natlab, "symmetric").host) as a:
        assert {candidate.address.version for candidate in (await a.gather()).candidates} == {4, 6}


def add_bridge(machine: Machine) -> None:
    """As a container engine does: an interface with a private address of each IP version."""
    for words in (
        ("link", "add", "br0", "type", "veth", "peer", "name", "br1"),
        ("addr", "add", "172.17.0.1/16", "dev", "br0"),
        ("addr", "add", "fd00:17::1/64", "dev", "br0", "nodad"),
        ("link", "set", "br0", "up"),
        ("link", "set", "br1", "up"),
    ):
        machine.run(["ip", *words])


async def test_a_container_bridge_has_no_relays_for_who_comes_from_elsewhere(natlab: Lab) -> None:
    """The server listens on every address; the relay of the other IP version is near the address that was reached."""
    server, client = natlab.machine("server"), home(natlab, "symmetric")
    (host6,) = server.hosts_of(6)
    add_bridge(server)
    for hosts in ({server.address, host6}, {server.address}):
        async with (
            serve(users=USERS, host=server.host) as running,
            Agent(relay(server, ipv6=True, gather_timeout_s=2.0), controlling=True, host=client.host) as agent,
        ):
            candidates = (await agent.gather()).candidates
            assert {candidate.address.host for candidate in candidates} == hosts
            assert set(running.relay_hosts) >= {*hosts, "172.17.0.1", "fd00:17::1"}
        # The next time there is no other address of IPv6 than the bridge's.
        if len(hosts) > 1:
            interface = [line.split()[1] for line in server.run(["ip", "-o", "addr"]).splitlines() if host6 in line]
            server.run(["ip", "addr", "del", f"{host6}/64", "dev", interface[0]])


async def test_a_client_that_moves(natlab: Lab) -> None:
    server = natlab.machine("server")
    a, b = home(natlab, "symmetric"), home(natlab, "symmetric")
    async with on(server), call(a, b, relay(server)) as made:
        await made.connect()
        await made.talk()
        a.roam(natlab.router("port-restricted"))
        await made.talk(lambda: len(made.of(RelayMoved, "a")) > 0)


async def test_time_limited_names(natlab: Lab) -> None:
    server = natlab.machine("server")
    listen = [TransportAddress(server.address, 3478)]

    def account(secret: bytes, ends_in_s: int) -> IceServer:
        username = f"{int(time.time()) + ends_in_s}:me"
        password = base64.b64encode(hmac.new(secret, username.encode(), hashlib.sha1).digest()).decode()
        return IceServer(urls=(f"turn:{server.address}?transport=udp",), username=username, credential=password)

    async with serve(listen, secrets=("new", "old"), host=server.host):
        for secret, ends_in_s, expected in ((b"new", 60, 1), (b"old", 60, 1), (b"none", 60, 0), (b"new", -1, 0)):
            config = relay(server, servers=(account(secret, ends_in_s),))
            async with Agent(config, controlling=True, host=natlab.machine().host) as agent:
                assert len((await agent.gather()).candidates) == expected


# --- the command -----------------------------------------------------------------------------------------------------


@contextmanager
def serving(machine: Machine, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "iceagent", "serve", "--json", "--listen", machine.address, *words]
    with machine.popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "server.ready"
        try:
            yield process
        finally:
            process.kill()


async def test_the_command_drains(natlab: Lab) -> None:
    """CLI contract: SIGTERM drains: no new allocations, then ends."""
    server, first, second = natlab.machine("server"), natlab.machine(), natlab.machine()
    with serving(server, "--user", f"{USER}:{PASSWORD}", "--drain", "60") as process:
        async with Agent(relay(server), controlling=True, host=first.host) as agent:
            assert len((await agent.gather()).candidates) == 1
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            draining = json.loads(process.stdout.readline())
            assert (draining["event"], draining["allocations"], draining["limit_s"]) == ("server.draining", 1, 60.0)
            async with Agent(relay(server, gather_timeout_s=0.5), controlling=True, host=second.host) as late:
                assert len((await late.gather()).candidates) == 0
            assert process.poll() is None
        # The last one was given back.
        assert await asyncio.to_thread(process.wait, 5.0) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["event"] == "server.stopped"


async def test_the_command_tells_prometheus(natlab: Lab) -> None:
    server = natlab.machine("server")
    words = ("--user", f"{USER}:{PASSWORD}", "--metrics", f"{server.address}:9641")
    with serving(server, *words):
        async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), relay(server)) as made:
            await made.connect()
            await made.talk()
            fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
            page = await asyncio.to_thread(
                server.run, [sys.executable, "-c", fetch, f"http://{server.address}:9641/metrics"]
            )
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#"))
    assert float(values["iceagent_allocations"]) == 2
    assert float(values['iceagent_relayed_packets_total{direction="to_peers"}']) > 0
    assert float(values['iceagent_requests_total{kind="turn"}']) > 4
    assert float(values['iceagent_errors_total{code="401",kind="turn"}']) == 2
    assert "secret" not in page and PASSWORD not in page


async def test_without_users_it_relays_for_nobody(natlab: Lab) -> None:
    server = natlab.machine("server")
    with serving(server):
        config = relay(server, gather_timeout_s=1.0)
        async with Agent(config, controlling=True, host=natlab.machine().host) as agent:
            assert len((await agent.gather()).candidates) == 0
