"""What is a machine of the laboratory, to the kernel? A network namespace without a name, and a thread that is in it.

Without a name it lives as long as a descriptor, a socket or a process of it does: a laboratory that is killed leaves
none behind. The thread opens what is to belong there: netlink sockets, processes, files below ``/proc/sys/net``. A
socket stays in the namespace that it was made in, so the caller's thread only has to be inside for that moment
(:meth:`Namespace.entered`); afterwards one loop serves the sockets of all machines.

Files of ours can stand in the place of some of the system's there (``/etc/hosts``): the thread then has a namespace of
mounts as well, which the programs inherit that it starts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from iceagent.lab import kernel
from iceagent.lab.errors import LabError, MissingProgram

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = ["Namespace"]

T = TypeVar("T")

COMMAND_TIMEOUT_S = 30.0
NEIGHBOUR_RETRANSMIT_MS = 10


class Namespace:
    """A new network namespace with loopback up, whose addresses are usable at once. Close it after use.

    Args:
        name: of its thread; need not be unique.
        env: the environment of programs that are started there.
        files: of the system → what stands in their place there. Those that the system does not have are left out.

    Raises:
        LabError: this process may not make one.
    """

    def __init__(self, name: str, env: Mapping[str, str], files: Mapping[str, Path] | None = None) -> None:
        self.name = name
        self._env = env
        self._files = files or {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"lab {name}")
        self._netlink: IPRoute | None = None
        self._fd = self._mounts_fd = -1
        try:
            self.do(self._unshare)
            self.do(self._prepare)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """What ``nsenter --net=`` and ip(8) take as this namespace, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def inode(self) -> int:
        """Its number, which every process in it has in ``/proc/PID/ns/net``."""
        return os.fstat(self._fd).st_ino

    def do(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the thread that is inside, and wait for it."""
        return self._thread.submit(work).result()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside: sockets made now belong here for good. Takes some 20 µs; do not await in it."""
        own = kernel.open_own(kernel.Kind.NETWORK)
        try:
            kernel.set_namespace(self._fd, kernel.Kind.NETWORK)
            yield
        finally:
            try:
                kernel.set_namespace(own, kernel.Kind.NETWORK)
            finally:
                os.close(own)

    def join(self) -> None:
        """The calling thread is inside for good, and sees the files that programs see there."""
        if self._mounts_fd >= 0:
            folder = os.getcwd()
            kernel.unshare(kernel.Kind.ROOT_AND_FOLDER)
            kernel.set_namespace(self._mounts_fd, kernel.Kind.MOUNTS)
            os.chdir(folder)
        kernel.set_namespace(self._fd, kernel.Kind.NETWORK)

    def check(self) -> None:
        """Whether threads can come back from here.

        Raises:
            LabError: they cannot: the network that they come from belongs to a user namespace that we are not root of.
        """

        def visit() -> None:
            with self.entered():
                pass

        # In a thread that may be lost.
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(visit).result()
            except OSError as error:
                raise LabError(_NEEDED) from error

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """A new socket of this namespace, to be used in any thread."""
        with self.entered():
            return socket.socket(family, kind)

    # --- links, addresses, routes --------------------------------------------------------------------------------

    def veth(self, name: str, other: Namespace, other_name: str) -> None:
        """Join two namespaces by a cable; both ends are down."""
        self.netlink(
            lambda ip: ip.link("add", ifname=name, kind="veth", peer={"ifname": other_name, "net_ns_fd": other.path})
        )

    def bridge(self, name: str) -> None:
        """An Ethernet switch, up, with an address of its own that does not change with its ports."""

        def make(ip: IPRoute) -> None:
            # A bridge would else look for IGMP queriers before it forwards SSDP.
            ip.link("add", ifname=name, kind="bridge", address=_stable_mac(name), br_mcast_snooping=0)
            ip.link("set", index=_index(ip, name), state="up")

        self.netlink(make)

    def up(self, name: str, *addresses: str, master: str | None = None) -> None:
        """Bring a link up, with addresses (``192.0.2.1/24``), or as a port of a bridge."""

        def bring_up(ip: IPRoute) -> None:
            index = _index(ip, name)
            for address in addresses:
                _add_address(ip, index, address)
            if master is not None:
                ip.link("set", index=index, master=_index(ip, master))
            ip.link("set", index=index, state="up")

        self.netlink(bring_up)
        for version in (4, 6) if self._has_neighbours(name) else ():
            # The first request may come before the other end is ready, and would be repeated after a second.
            self.sysctl(f"ipv{version}/neigh/{name}/retrans_time_ms", NEIGHBOUR_RETRANSMIT_MS)

    def mac(self, name: str) -> str:
        """The Ethernet address of a link."""

        def look(ip: IPRoute) -> str:
            (link,) = ip.get_links(_index(ip, name))
            return str(link.get_attr("IFLA_ADDRESS"))

        return self.netlink(look)

    def know_neighbours(self, name: str, mac: str, hosts: Sequence[str]) -> None:
        """These addresses are at that Ethernet address: nobody has to ask for them."""

        def tell(ip: IPRoute) -> None:
            index = _index(ip, name)
            for host in hosts:
                ip.neigh("replace", dst=host, lladdr=mac, ifindex=index, state="permanent")

        self.netlink(tell)

    def set_link(self, name: str, *, is_up: bool) -> None:
        """Take a link down, or up. Taking it down loses its routes."""
        state = "up" if is_up else "down"
        self.netlink(lambda ip: ip.link("set", index=_index(ip, name), state=state))

    def delete_link(self, name: str) -> None:
        """Remove a link; a cable goes with either of its ends."""
        self.netlink(lambda ip: ip.link("del", index=_index(ip, name)))

    def add_address(self, name: str, address: str, *, is_deprecated: bool = False) -> None:
        """Add one, or change whether it is deprecated (RFC 4862: preferred lifetime 0)."""
        self.netlink(lambda ip: _add_address(ip, _index(ip, name), address, is_deprecated=is_deprecated))

    def delete_address(self, name: str, address: str) -> None:
        """Remove an address."""
        host, length = address.split("/")
        self.netlink(lambda ip: ip.addr("del", index=_index(ip, name), address=host, prefixlen=int(length)))

    def route(self, destination: str, gateway: str) -> None:
        """Add a route, or move it; ``destination``: a prefix, or ``default``."""
        family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
        target = {} if destination == "default" else {"dst": destination}
        self.netlink(lambda ip: ip.route("replace", family=family, gateway=gateway, **target))

    def route_to_link(self, destination: str, name: str) -> None:
        """Add a route into a link that has no neighbours."""
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        self.netlink(lambda ip: ip.route("replace", family=family, dst=destination, oif=_index(ip, name)))

    def has_carrier(self, name: str) -> bool:
        """Whether somebody is at the other end of a link."""

        def look(ip: IPRoute) -> bool:
            (link,) = ip.get_links(_index(ip, name))
            return bool(link.get_attr("IFLA_CARRIER"))

        return self.netlink(look)

    def is_usable(self, name: str) -> bool:
        """Whether what is sent into a link leaves it.

        The end of a cable that comes up first, and a bridge, are brought to life by a thread of the kernel that all
        laboratories of this machine share, some time after the other end, or the first port. Until then they lose
        what they are given, without a word.
        """

        def look(ip: IPRoute) -> bool:
            (link,) = ip.get_links(_index(ip, name))
            state: object = link.get_attr("IFLA_OPERSTATE")
            kind: object = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
            # RFC 2863: a TAP device does not say more.
            return state == "UP" or (kind == "tun" and state == "UNKNOWN")

        return self.netlink(look)

    def is_forwarding(self, port: str) -> bool:
        """Whether a port of a bridge forwards; until then it loses what it is given."""

        def look(ip: IPRoute) -> bool:
            (link,) = ip.get_links(_index(ip, port))
            state: object = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_STATE")
            return state == BRIDGE_PORT_FORWARDING

        return self.netlink(look)

    def netlink(self, work: Callable[[IPRoute], T]) -> T:
        """Run ``work`` with the namespace's netlink socket, in its thread.

        Raises:
            LabError: the kernel refused; the message has its words.
        """

        def inside() -> T:
            if self._netlink is None:
                self._netlink = _pyroute2().IPRoute()
            return work(self._netlink)

        try:
            return self.do(inside)
        except _pyroute2().NetlinkError as error:
            raise LabError(f"{self.name}: the kernel refused: {error}") from error

    # --- rules, switches, processes ------------------------------------------------------------------------------

    def nft(self, rules: str) -> None:
        """Load rules of nftables, all or none.

        Raises:
            LabError: nft refused them.
            MissingProgram: it is not installed.
        """
        self.run(["nft", "-f", "-"], rules, is_ours=True)

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8) in one batch, for what has no method here: ``link add nowhere type ifb``.

        Raises:
            LabError: ip refused one; those before it are done.
            MissingProgram: it is not installed.
        """
        self.run(["ip", "-batch", "-"], "\n".join(commands), is_ours=True)

    def sysctl(self, name: str, value: int) -> None:
        """Write ``net/NAME`` below ``/proc/sys``."""
        path = Path("/proc/sys/net", name)
        try:
            self.do(lambda: path.write_text(str(value)))
        except OSError as error:
            raise LabError(f"{self.name}: {path}: {error.strerror}") from error

    def run(self, command: Sequence[str], text: str = "", *, is_ours: bool = False) -> str:
        """Run a program here, with ``text`` as its input, and return its output.

        Args:
            command: the program and its arguments.
            text: its input.
            is_ours: part of an operation of the laboratory, which Ctrl-C on the terminal does not break off halfway.

        Raises:
            LabError: it failed, with its own words, or took longer than 30 s.
            MissingProgram: it is not installed.
        """
        _check_command(command)
        folder = os.getcwd()
        try:
            done = self.do(
                lambda: subprocess.run(
                    command,
                    input=text,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=COMMAND_TIMEOUT_S,
                    env=self._env,
                    cwd=folder,
                    start_new_session=is_ours,
                )
            )
        except OSError as error:
            raise self._not_started(command, self._env, error) from error
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name}: {command[0]} took longer than {COMMAND_TIMEOUT_S:.0f} s") from error
        if done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(command)}: {done.stderr.strip() or f'exit {done.returncode}'}")
        return done.stdout

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program here; ``options``: as :class:`subprocess.Popen` takes them, ``env`` adds to ours.

        Raises:
            MissingProgram: it is not installed.
            LabError: it cannot be executed.
        """
        _check_command(command)
        env = {**self._env, **options.pop("env", {})}
        # Our thread may be in another folder than the caller.
        options.setdefault("cwd", os.getcwd())
        try:
            return self.do(lambda: subprocess.Popen(command, env=env, **options))
        except OSError as error:
            raise self._not_started(command, env, error) from error

    def _not_started(self, command: Sequence[str], env: Mapping[str, str], error: OSError) -> LabError:
        program = command[0]
        if isinstance(error, FileNotFoundError) and shutil.which(program, path=env.get("PATH")) is None:
            return MissingProgram(program)
        return LabError(f"{self.name}: {program} could not be started: {error.strerror or error}")

    def close(self) -> None:
        """Forget it; the kernel takes it down with the last socket and process in it. Idempotent."""
        if self._netlink is not None:
            self.do(self._netlink.close)
            self._netlink = None
        self._thread.shutdown()
        for fd in (self._fd, self._mounts_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._mounts_fd = -1

    def __repr__(self) -> str:
        return f"<Namespace {self.name}>"

    def _unshare(self) -> None:
        """The calling thread, ours, is inside from now on."""
        try:
            kernel.unshare(kernel.Kind.NETWORK)
            self._fd = kernel.open_own(kernel.Kind.NETWORK)
            if self._files:
                kernel.unshare(kernel.Kind.MOUNTS)
                kernel.keep_mounts_private()
                self._mounts_fd = kernel.open_own(kernel.Kind.MOUNTS)
            for target, source in self._files.items():
                with contextlib.suppress(FileNotFoundError):
                    kernel.bind(str(source), target)
        except OSError as error:
            raise LabError(_NEEDED) from error

    def _prepare(self) -> None:
        for name, value in _SWITCHES.items():
            with contextlib.suppress(FileNotFoundError):  # A kernel without IPv6, or without br_netfilter.
                Path("/proc/sys/net", name).write_text(str(value))
        with _pyroute2().IPRoute() as ip:
            ip.link("set", index=1, state="up")

    def _has_neighbours(self, name: str) -> bool:
        return self.do(lambda: Path(f"/proc/sys/net/ipv4/neigh/{name}").exists())


# Of <linux/if_addr.h>.
_IFA_F_NODAD = 0x02
# BR_STATE_FORWARDING of <linux/if_bridge.h>
BRIDGE_PORT_FORWARDING = 3

_SWITCHES = {
    # An IPv6 address would else be tentative for a second or two, also one that is added later.
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/autoconf": 0,
    "ipv6/conf/default/accept_ra": 0,
    # A machine with two uplinks may hear on either; what filters here shall be the rules only.
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    # Deleting the first address of a subnet would else delete those that were added later.
    "ipv4/conf/all/promote_secondaries": 1,
    "ipv4/conf/default/promote_secondaries": 1,
    # Frames between two ports of a bridge would else pass the NAT rules, half of them.
    "bridge/bridge-nf-call-iptables": 0,
    "bridge/bridge-nf-call-ip6tables": 0,
    "bridge/bridge-nf-call-arptables": 0,
}


_NEEDED = "a laboratory needs root, or user and network namespaces of its own: unshare -Urnm, around the whole program"


@functools.cache
def _pyroute2() -> Any:
    """Speaks to the kernel. Importing it takes a tenth of a second, which nobody pays who makes no namespace."""
    import pyroute2

    return pyroute2


def _check_command(command: Sequence[str]) -> None:
    """Raises TypeError: it is a text, which would be taken apart into letters."""
    if isinstance(command, str | bytes) or not command:
        raise TypeError(f'a command is a list, ["ls", "-l"], not {command!r}')


def _index(ip: IPRoute, name: str) -> int:
    found: list[int] = list(ip.link_lookup(ifname=name))
    if not found:
        raise LabError(f"there is no link {name}")
    return found[0]


def _add_address(ip: IPRoute, index: int, address: str, *, is_deprecated: bool = False) -> None:
    host, length = address.split("/")
    options: dict[str, Any] = {"preferred_lft": 0, "valid_lft": 0xFFFFFFFF} if is_deprecated else {}
    if ":" in host:
        # The switch above ends duplicate address detection with the next turn of a kernel's thread, this at once.
        options["IFA_FLAGS"] = _IFA_F_NODAD
    ip.addr("replace", index=index, address=host, prefixlen=int(length), **options)


def _stable_mac(name: str) -> str:
    """Locally administered, unicast, of a bridge with this name; each namespace has one of a name."""
    return "02:62:72:" + ":".join(f"{byte:02x}" for byte in name.encode().ljust(3, b"\0")[:3])
