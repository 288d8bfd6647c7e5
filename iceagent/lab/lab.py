"""A laboratory: an Internet of network namespaces in one process, with real NATs between its machines."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from iceagent.lab.errors import LabError
from iceagent.lab.host import LabHost
from iceagent.lab.kinds import EVERYTHING, Egress, kind_named
from iceagent.lab.machines import MAX_HOSTS, Internet, Machine, Network, Router, check_network
from iceagent.lab.namespace import Namespace
from iceagent.lab.owner import VARIABLE, Owner, search_path, sweep
from iceagent.lab.wire import Impairment, Wire, open_tap

__all__ = ["Lab"]

POLL_S = 0.002
# How long programs have to end when they are told to.
END_TIMEOUT_S = 0.5
# A label of a DNS name; it is also a folder's.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

_LOCALHOST = "127.0.0.1 localhost\n::1 localhost\n"


def _end(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """End these programs, and close our ends of their pipes."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + END_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):  # What was still to be written has no reader any more.
                    pipe.close()


class Lab:
    """An Internet, and what is plugged into it. Close it after use, or use it in a ``with`` block; not thread-safe.

    Needs root, or ``unshare -Urnm`` around the program, and nft(8).

    Attributes:
        internet: joins all sites.
        folder: for logs and configurations; removed at the end.
        names: what names of machines stand for: every machine is ``NAME.lab``, to agents and to programs.

    Raises:
        LabError: namespaces cannot be made here.
    """

    def __init__(self) -> None:
        self._is_closed = False
        self._pid = os.getpid()
        sweep()
        self._owner = Owner()
        self.folder: Path = self._owner.folder
        self.names: dict[str, tuple[str, ...]] = {}
        self._hosts_file = self.folder / "hosts"
        self._hosts_file.write_text(_LOCALHOST)
        self._env = {**os.environ, "PATH": search_path(), VARIABLE: self._owner.mark}
        self._namespaces: list[Namespace] = []
        self._processes: list[subprocess.Popen[Any]] = []
        self._hosts: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, LabHost]] = WeakKeyDictionary()
        try:
            self.internet = Internet(self)
            self.internet.namespace.check()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Lab of {', '.join(namespace.name for namespace in self._namespaces) or 'nothing'}>"

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def router(
        self,
        kind: str = "port-restricted",
        name: str | None = None,
        *,
        behind: Network | None = None,
        hairpin: bool = False,
        lifetime_s: int = 30,
        unanswered_lifetime_s: int | None = None,
        needs_answers: bool = False,
        egress: Egress = EVERYTHING,
        ipv6: str | None = None,
        is_carrier: bool = False,
        is_ipv6_only: bool = False,
        impairment: Impairment | None = None,
    ) -> Router:
        """Add a router.

        Args:
            kind: one of :data:`iceagent.lab.kinds.KINDS`.
            name: unique; ``None``: made of its kind.
            behind: another router, or ``None``: the Internet.
            hairpin: machines behind it reach each other through outside addresses; cones only.
            lifetime_s: seconds that a binding lives unused.
            unanswered_lifetime_s: the same of one that was not answered, or is younger than two seconds; ``None``: no
                other. Not for cones.
            needs_answers: an IPv4 flow that was answered lives so long after the last packet that came in, whatever it
                sends: carriers that ignore one-way heartbeats.
            egress: what it lets out, beside what its kind says.
            ipv6: ``"firewall"`` lets in answers only, ``"open"`` everything; ``None``: no IPv6 behind it.
            is_carrier: a carrier's: homes are plugged in, and are in 100.64.0.0/24.
            is_ipv6_only: machines behind it have no IPv4 addresses; see :func:`iceagent.lab.services.nat64`.
            impairment: of its cable to the outside, which can be changed later (``router.wire.set``); ``None``: a
                faster one that cannot.

        Raises:
            LabError: a value makes no sense, or the kernel refused.
        """
        if behind is not None:
            check_network(behind)
        return Router(
            self,
            self._unused(name, kind),
            kind_named(kind),
            behind or self.internet,
            hairpin=hairpin,
            lifetime_s=lifetime_s,
            unanswered_lifetime_s=unanswered_lifetime_s,
            needs_answers=needs_answers,
            egress=egress,
            ipv6=ipv6,
            is_carrier=is_carrier,
            is_ipv6_only=is_ipv6_only,
            impairment=impairment,
        )

    def machine(
        self,
        name: str | None = None,
        *,
        behind: Network | None = None,
        addresses: int = 1,
        impairment: Impairment | None = None,
    ) -> Machine:
        """Add a machine.

        Args:
            name: unique, letters, digits and hyphens; ``NAME.lab`` stands for its addresses.
            behind: a router, or ``None``: on the Internet.
            addresses: how many IPv4 addresses it has.
            impairment: of its cable, as for a router.
        """
        if behind is not None:
            check_network(behind)
        name = self._unused(name, "machine")
        if not 1 <= addresses <= MAX_HOSTS:
            raise LabError(f"a machine has 1 to {MAX_HOSTS} IPv4 addresses, not {addresses}")
        machine = Machine(self, name, behind or self.internet, addresses=addresses, impairment=impairment)
        self.tell_names(machine)
        return machine

    def close(self) -> None:
        """End all programs, close all namespaces, remove the folder; idempotent.

        In a forked child it does nothing: what there is belongs to the parent.
        """
        if os.getpid() != self._pid:
            return
        self._is_closed = True
        # In the reverse order, and each of them whatever the others do.
        with ExitStack() as stack:
            networks = {namespace.inode for namespace in self._namespaces}
            while self._namespaces:
                stack.callback(self._namespaces.pop(0).close)
            # While they are ours: the next laboratory's networks may have the numbers of those that are closed.
            stack.callback(self._owner.close, networks)
            for hosts in self._hosts.values():
                for host in hosts.values():
                    stack.callback(host.close)
            self._hosts.clear()
            processes, self._processes = self._processes, []
            stack.callback(_end, processes)

    # --- for its parts -------------------------------------------------------------------------------------------

    def add_namespace(self, name: str) -> Namespace:
        """A new namespace that is closed with the laboratory."""
        resolv_conf = self.resolv_conf(name)
        # Without a server: a look-up ends at once then, instead of waiting for one that cannot be reached.
        resolv_conf.write_text("# no name server\n")
        namespace = Namespace(name, self._env, {"/etc/hosts": self._hosts_file, "/etc/resolv.conf": resolv_conf})
        self._namespaces.append(namespace)
        return namespace

    def resolv_conf(self, name: str) -> Path:
        """What programs of this machine see as ``/etc/resolv.conf``."""
        return self.folder / f"{name}.resolv.conf"

    def tell_names(self, machine: Machine) -> None:
        """The machine has these addresses from now on: for :class:`LabHost`, and in everybody's ``/etc/hosts``."""
        self.names[f"{machine.name.lower()}.lab"] = machine.hosts
        lines = [f"{host} {name}\n" for name, hosts in self.names.items() for host in hosts]
        # In its place: it is mounted.
        self._hosts_file.write_text(_LOCALHOST + "".join(lines))

    def lay(
        self, inner: Namespace, device: str, outer: Namespace, port: str, impairment: Impairment | None
    ) -> Wire | None:
        """Lay a cable between two namespaces; both ends are down."""
        if impairment is None:
            outer.veth(port, inner, device)
            return None
        fds: list[int] = []
        try:
            for space, name in ((inner, device), (outer, port)):
                fds.append(space.do(partial(open_tap, name)))
        except OSError as error:
            for fd in fds:
                os.close(fd)
            raise LabError(f"a cable with delay or loss needs /dev/net/tun: {error.strerror}") from error
        wire = Wire(fds[0], fds[1], impairment, len(self._processes), self._env)
        self._processes.append(wire.process)
        return wire

    def host_of(self, machine: Machine) -> LabHost:
        """The one host of a machine on the running loop."""
        try:
            hosts = self._hosts.setdefault(asyncio.get_running_loop(), {})
        except RuntimeError as error:
            raise LabError(
                f"the host of {machine.name} belongs to a running asyncio loop; there is none here"
            ) from error
        host = hosts.get(machine.name)
        if host is None:
            host = hosts[machine.name] = LabHost(machine.namespace, self.names)
        return host

    def popen(self, namespace: Namespace, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program that ends with the laboratory at the latest."""
        process = namespace.popen(command, **options)
        self._processes.append(process)
        return process

    def wait_until(self, fact: Callable[[], bool], timeout_s: float, complaint: str) -> None:
        """Look at ``fact`` until it is true.

        Raises:
            LabError: it is not, after so many seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not fact():
            if time.monotonic() > deadline:
                raise LabError(f"{complaint} after {timeout_s:g} s")
            time.sleep(POLL_S)

    def _unused(self, name: str | None, otherwise: str) -> str:
        if self._is_closed:
            raise LabError("the laboratory is closed")
        if name is not None and not _NAME.fullmatch(name):
            raise LabError(f"{name!r} is no name for a machine: 1 to 63 letters, digits and hyphens")
        used = {namespace.name.lower() for namespace in self._namespaces}
        if name is None:
            return next(
                f"{otherwise}-{number}" for number in range(1, len(used) + 2) if f"{otherwise}-{number}" not in used
            )
        if name.lower() in used:
            raise LabError(f"there is a {name!r} already")
        return name
