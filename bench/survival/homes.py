"""Where do the two talkers live? Behind a router each, with servers on the Internet."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from iceagent import IceServer
from iceagent.lab import Impairment, Lab, Machine, Router
from iceagent.lab.services import Service, coturn, serve

__all__ = ["PASSWORD", "USER", "Homes", "turn"]

USER = PASSWORD = "lab"


def turn(*machines: Machine, transport: str = "udp") -> tuple[IceServer, ...]:
    """TURN servers on these machines, with the user ``lab``."""
    return tuple(
        IceServer(urls=(f"turn:{each.address}?transport={transport}",), username=USER, credential=PASSWORD)
        for each in machines
    )


class Homes:
    """Two machines behind a router each, and servers.

    Args:
        lab: where.
        name: of this pair of homes, unique; part of all names.
        kind_a: of the one router.
        kind_b: of the other.
        relays: how many TURN servers there are.
        mobility: they move an allocation along with its client (RFC 8016): ours do, coturn does not by default.
        second_uplink: ``a`` is plugged into a carrier's network as well, as a telephone is, behind a router of the
            kind ``kind_a``.
        elsewhere: networks that ``a``, then ``b``, can roam to, behind a router of its kind each.
        lifetime_s: seconds that a binding lives unused.
        impairment: of the routers' cables, which can be cut then.

    Attributes:
        lab: see there.
        name: see there.
        routers: those of ``a`` and of ``b``.
        a: one machine.
        b: the other one.
        stun: the URI of the STUN server.
        servers: that one and TURN servers, for the agents.
        services: the TURN servers' programs.
        elsewhere: the networks to roam to.
    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        kind_a: str,
        kind_b: str,
        *,
        relays: int = 1,
        mobility: bool = True,
        second_uplink: bool = False,
        elsewhere: int = 0,
        lifetime_s: int = 30,
        impairment: Impairment | None = None,
    ) -> None:
        self.lab, self.name = lab, name
        self.routers = (
            lab.router(kind_a, f"home-a-{name}", lifetime_s=lifetime_s, impairment=impairment),
            lab.router(kind_b, f"home-b-{name}", lifetime_s=lifetime_s, impairment=impairment),
        )
        self.a, self.b = (lab.machine(behind=router) for router in self.routers)
        self._carrier = lab.router(kind_a, f"carrier-{name}", is_carrier=True) if second_uplink else None
        if self._carrier is not None:
            self.a.add_uplink(self._carrier)
        kinds = (kind_a, kind_b)[:elsewhere]
        self.elsewhere = [lab.router(kind, f"cafe{number}-{name}") for number, kind in enumerate(kinds)]
        stun = lab.machine(f"stun-{name}")
        machines = [lab.machine(f"turn{number}-{name}") for number in range(relays)]
        with ThreadPoolExecutor() as starting:
            started = starting.submit(serve, stun)
            self.services: list[Service] = list(starting.map(partial(_relay, mobility=mobility), machines))
            started.result()
        self.stun = f"stun:{stun.address}"
        self.servers = (IceServer(urls=(self.stun,)), *turn(*machines))

    @property
    def carrier(self) -> Router:
        """The router of the second uplink."""
        assert self._carrier is not None
        return self._carrier

    def roam(self) -> None:
        """Whoever has a network to roam to is there."""
        for machine, router in zip(self.machines, self.elsewhere, strict=False):
            machine.roam(router)

    @property
    def machines(self) -> tuple[Machine, Machine]:
        """Both."""
        return self.a, self.b

    def block(self, *directions: str) -> None:
        """Nothing passes between the two homes any more, or in one direction; servers are reached as before."""
        one, other = self.routers
        rules = {"out": f"ip daddr {other.address} drop", "in": f"ip saddr {other.address} drop"}
        one.load(extra="; ".join(rules[each] for each in directions or rules))

    def unblock(self) -> None:
        """It does again."""
        self.routers[0].load()

    def eat_payload(self) -> None:
        """STUN passes between the two homes, and nothing else."""
        one, other = self.routers
        # The first byte behind the UDP header; STUN begins with 0 … 3.
        eaten = "meta l4proto udp @th,64,8 > 3"
        one.load(extra=f"ip daddr {other.address} {eaten} drop; ip saddr {other.address} {eaten} drop")

    def serving(self, hosts: Sequence[str]) -> Service:
        """The TURN server that has one of these addresses; of several, the first."""
        return next(each for each in self.services if each.machine.address in hosts)


def _relay(machine: Machine, *, mobility: bool) -> Service:
    if mobility:
        return serve(machine, "--user", f"{USER}:{PASSWORD}")
    return coturn(machine, users={USER: PASSWORD})
