"""Servers and router software of other makes, on machines of a laboratory.

Each function starts a program, waits until it answers, and returns a :class:`Service`. What it says is kept in the
laboratory's folder, and told where it does not come up. A program that is missing is named
(:class:`iceagent.lab.MissingProgram`).
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from iceagent.lab.errors import LabError
from iceagent.lab.machines import Machine, Router
from relay.server import STUN_PORT
from relay.stun import MessageClass, Method, build

__all__ = [
    "NAT64_PREFIX",
    "PROXY_PORT",
    "REDIS_PORT",
    "Service",
    "coturn",
    "miniupnpd",
    "nat64",
    "redis",
    "serve",
    "tinyproxy",
]

NAT64_PREFIX = "64:ff9b::/96"
"""RFC 6052, 2.1: the well-known prefix."""

PROXY_PORT = 8888
REDIS_PORT = 6379
NAT_PMP_PORT = 5351
UPNP_PORT = 5000

READY_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 0.1
END_TIMEOUT_S = 2.0
# The end of a program's log that an error shows.
MAX_TOLD = 1_000

# tayga's own addresses, and the pool that IPv6 machines appear with before the router's NAT44.
TAYGA_POOL = "192.168.255.0/24"
TAYGA_HOST = "192.168.255.1"
# Outside NAT64_PREFIX; from RFC 4193's range, as nobody outside the router sees it.
TAYGA_HOST6 = "fd00::6464"
# RFC 7050: what the prefix is discovered by.
IPV4ONLY = {"ipv4only.arpa": ("192.0.0.170", "192.0.0.171")}
# One question (RFC 1035, 4.1): its addresses.
IPV4ONLY_QUERY = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\x08ipv4only\x04arpa\0" + struct.pack("!2H", 1, 1)


class Service:
    """A program that runs on a machine.

    Attributes:
        machine: where.
        log: what it said.
    """

    def __init__(
        self,
        machine: Machine,
        name: str,
        command: Sequence[str],
        is_ready: Callable[[], bool],
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.machine = machine
        self.log: Path = machine.folder / f"{name}.log"
        self._name = name
        self._command = command
        self._is_ready = is_ready
        self._env = dict(env or {})
        self._process: subprocess.Popen[Any] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """Of the process.

        Raises:
            LabError: it does not run.
        """
        if self._process is None or self._process.poll() is not None:
            raise LabError(f"{self._name} on {self.machine.name} does not run")
        return self._process.pid

    def start(self) -> None:
        """Start it, if it does not run, and wait until it answers.

        Raises:
            LabError: it ended, or did not answer in ten seconds; the message has the end of what it said.
            MissingProgram: it is not installed.
        """
        if self._process is not None and self._process.poll() is None:
            return
        with self.log.open("ab") as log:
            process = self.machine.popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._env
            )
        self._process = process

        def is_decided() -> bool:
            return process.poll() is not None or self._is_ready()

        try:
            self.machine.wait_until(is_decided, READY_TIMEOUT_S, "no answer")
        except LabError as error:
            raise LabError(self._complaint(f"gave {error}")) from error
        if process.poll() is not None:
            raise LabError(self._complaint(f"ended with exit code {process.returncode}"))

    def stop(self) -> None:
        """Tell it to end, and wait for that; kills it after two seconds."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._end(subprocess.Popen.kill)

    def restart(self) -> None:
        """Kill it, and start it again."""
        self.kill()
        self.start()

    def _end(self, how: Callable[[subprocess.Popen[Any]], None]) -> None:
        if self._process is None:
            return
        how(self._process)
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _complaint(self, what: str) -> str:
        said = self.log.read_text(errors="replace")[-MAX_TOLD:].strip()
        return f"{self._name} on {self.machine.name} {what}; it said: {said or 'nothing'}"


def serve(machine: Machine, *options: str) -> Service:
    """``iceagent serve`` on all IPv4 addresses of a machine."""
    listen = [word for host in machine.hosts_of(4) for word in ("--listen", f"{host}:{STUN_PORT}")]
    command = [sys.executable, "-P", "-m", "iceagent", "serve", *listen, *options]
    return Service(machine, "serve", command, lambda: _answers_stun(machine, STUN_PORT))


def coturn(
    machine: Machine,
    *options: str,
    users: Mapping[str, str] | None = None,
    realm: str = "lab",
    port: int = STUN_PORT,
    tls: tuple[Path, Path, int] | None = None,
) -> Service:
    """coturn, a STUN and TURN server; with two IPv4 addresses it does RFC 5780.

    Args:
        machine: where.
        options: more of its own.
        users: name → password, for TURN.
        realm: for TURN.
        port: where it listens, over UDP and TCP; the next one too where it does RFC 5780.
        tls: certificate and key (PEM files), and where it listens over TLS.
    """
    # A database and a process file of its own, or two of them fight.
    own = machine.folder
    addresses = [word for host in machine.hosts_of(4) for word in (f"--listening-ip={host}", f"--relay-ip={host}")]
    secure = ["--no-tls"]
    if tls is not None:
        certificate, key, tls_port = tls
        secure = [f"--cert={certificate.absolute()}", f"--pkey={key.absolute()}", f"--tls-listening-port={tls_port}"]
    accounts = [f"--user={name}:{password}" for name, password in (users or {}).items()]
    command = [
        *("turnserver", "-n", "--no-cli", "--no-dtls", "--log-file=stdout", "--simple-log", *secure),
        *("--lt-cred-mech", "--fingerprint", f"--realm={realm}", f"--listening-port={port}"),
        *(f"--pidfile={own / f'turnserver-{port}.pid'}", f"--userdb={own / f'turnserver-{port}.db'}"),
        *addresses,
        *accounts,
        *options,
    ]
    return Service(machine, f"turnserver-{port}", command, lambda: _answers_stun(machine, port))


def miniupnpd(
    router: Router,
    *,
    upnp: bool = True,
    nat_pmp: bool = True,
    is_igd1: bool = False,
    extra: Mapping[str, str] | None = None,
) -> Service:
    """miniupnpd: UPnP IGD 1 or 2, NAT-PMP and PCP (the last two share a switch) on a router.

    Args:
        router: of a kind that translates.
        upnp: does UPnP.
        nat_pmp: does NAT-PMP and PCP.
        is_igd1: says that it is an IGD of version 1, without IPv6 pinholes.
        extra: more settings of its own.
    """
    prefix = router.setting.lan
    settings = {
        "ext_ifname": router.device,
        "listening_ip": "lan",
        "enable_upnp": _yes(upnp),
        "enable_natpmp": _yes(nat_pmp),
        "force_igd_desc_v1": _yes(is_igd1),
        "secure_mode": "yes",
        # Its epoch begins with it, and not with the machine.
        "system_uptime": "no",
        "http_port": str(UPNP_PORT),
        "upnp_table_name": "filter",
        "upnp_nat_table_name": "filter",
        "upnp_forward_chain": "miniupnpd",
        "upnp_nat_chain": "prerouting_miniupnpd",
        "upnp_nat_postrouting_chain": "postrouting_miniupnpd",
        "uuid": str(UUID(bytes=secrets.token_bytes(16), version=4)),
        **(extra or {}),
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [f"allow 1024-65535 {prefix} 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535"]
    config = router.folder / "miniupnpd.conf"
    config.write_text("\n".join(lines) + "\n")
    command = ["miniupnpd", "-d", "-f", str(config), "-P", str(router.folder / "miniupnpd.pid")]

    def is_ready() -> bool:
        # A NAT-PMP request for the outside address (RFC 6886, 3.2).
        return (not nat_pmp or _answers(router, router.lan_address, NAT_PMP_PORT, b"\0\0")) and (
            not upnp or _accepts(router, router.lan_address, UPNP_PORT)
        )

    return Service(router, "miniupnpd", command, is_ready)


def nat64(router: Router) -> tuple[Service, Service]:
    """NAT64 by tayga and DNS64 by unbound on a router, for machines with IPv6 only.

    IPv6 machines reach IPv4 at :data:`NAT64_PREFIX`; their packets then pass the router's own NAT, whose kind is what
    the NAT64 is. The name server, at the router's inside IPv6 address, knows the machines that the laboratory has by
    now.
    """
    if router.inside_host6 is None:
        raise LabError(f"{router.name} has no IPv6 behind it")
    translating = _tayga(router)
    return translating, _unbound(router, router.inside_host6)


def tinyproxy(router: Router) -> Service:
    """An HTTP proxy on a router's inside address, port 8888, that connects to port 443 only."""
    config = router.folder / "tinyproxy.conf"
    lines = (
        f"Port {PROXY_PORT}",
        f"Listen {router.lan_address}",
        "Timeout 600",
        f"Allow {router.setting.lan}",
        f"Allow {router.lan_address}",
        "ConnectPort 443",
    )
    config.write_text("\n".join(lines) + "\n")
    command = ["tinyproxy", "-d", "-c", str(config)]
    return Service(router, "tinyproxy", command, lambda: _accepts(router, router.lan_address, PROXY_PORT))


def redis(machine: Machine) -> Service:
    """Redis on a machine's first address, port 6379, for whoever asks; it keeps nothing."""
    command = [
        *("redis-server", "--bind", machine.address, "--port", str(REDIS_PORT), "--protected-mode", "no"),
        *("--save", "", "--dir", str(machine.folder)),
    ]
    return Service(machine, "redis", command, lambda: _accepts(machine, machine.address, REDIS_PORT))


# --- NAT64 -----------------------------------------------------------------------------------------------------------


def _tayga(router: Router) -> Service:
    config = router.folder / "tayga.conf"
    lines = (
        "tun-device nat64",
        f"ipv4-addr {TAYGA_HOST}",
        f"ipv6-addr {TAYGA_HOST6}",
        f"prefix {NAT64_PREFIX}",
        f"dynamic-pool {TAYGA_POOL}",
        f"data-dir {router.folder}",
    )
    config.write_text("\n".join(lines) + "\n")
    router.run(["tayga", "-c", str(config), "--mktun"])
    router.namespace.up("nat64")
    router.namespace.route_to_link(TAYGA_POOL, "nat64")
    router.namespace.route_to_link(NAT64_PREFIX, "nat64")
    command = ["tayga", "-c", str(config), "--nodetach", "-d"]
    # It says nothing on the wire; its device has a carrier once it reads it.
    return Service(router, "tayga", command, lambda: router.namespace.has_carrier("nat64"))


def _unbound(router: Router, host6: str) -> Service:
    folder = router.folder
    zones = {"lab": router.lab_names, "ipv4only.arpa": IPV4ONLY}
    lines = [
        "server:",
        f"  interface: {host6}",
        "  access-control: ::0/0 allow",
        '  username: ""',
        '  chroot: ""',
        f'  directory: "{folder}"',
        f'  pidfile: "{folder / "unbound.pid"}"',
        "  use-syslog: no",
        '  module-config: "dns64 iterator"',
        f"  dns64-prefix: {NAT64_PREFIX}",
        "  do-daemonize: no",
        "remote-control:",
        "  control-enable: no",
    ]
    for zone, names in zones.items():
        file = folder / f"{zone}.zone"
        file.write_text(_zone(zone, names))
        # Local data would pass DNS64 by.
        lines += [
            "auth-zone:",
            f"  name: {zone}.",
            f'  zonefile: "{file}"',
            "  for-downstream: no",
            "  for-upstream: yes",
        ]
    config = folder / "unbound.conf"
    config.write_text("\n".join(lines) + "\n")
    command = ["unbound", "-d", "-c", str(config)]
    return Service(router, "unbound", command, lambda: _answers(router, host6, 53, IPV4ONLY_QUERY))


def _zone(zone: str, names: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"$ORIGIN {zone}.",
        "$TTL 1",
        f"@ IN SOA ns.{zone}. admin.{zone}. 1 3600 600 86400 1",
        f"@ IN NS ns.{zone}.",
    ]
    for name, hosts in names.items():
        for host in hosts:
            kind = "AAAA" if ipaddress.ip_address(host).version == 6 else "A"
            lines.append(f"{name}. IN {kind} {host}")
    return "\n".join(lines) + "\n"


# --- does it answer? -------------------------------------------------------------------------------------------------


def _answers_stun(machine: Machine, port: int) -> bool:
    request = build(Method.BINDING, MessageClass.REQUEST, secrets.token_bytes(12)).encode(fingerprint=False)
    return _answers(machine, machine.address, port, request)


def _answers(machine: Machine, host: str, port: int, request: bytes) -> bool:
    """Whether a UDP server answers; asked from its own machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with machine.namespace.socket(family) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            sock.sendto(request, (host, port))
            return bool(sock.recv(2_000))
        except OSError:
            return False


def _accepts(machine: Machine, host: str, port: int) -> bool:
    """Whether a TCP server accepts."""
    with machine.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        return sock.connect_ex((host, port)) == 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"
