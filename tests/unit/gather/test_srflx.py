"""How the name of a STUN server becomes addresses (RFC 8489, 8), in virtual time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest

from iceagent.gather.servers import resolve_server
from iceagent.net.address import TransportAddress
from iceagent.net.host import Host, SrvRecord
from iceagent.testing import run
from relay.uri import ServerUri

FOREVER = float("inf")


class Resolver:
    """As much of a host as it takes to resolve a name; counts what it is asked.

    Args:
        delay_s: for addresses, ``FOREVER``: no answer.
        srv_delay_s: the same for services.
    """

    def __init__(
        self,
        names: dict[str, list[str]],
        services: dict[str, list[SrvRecord]] | None = None,
        *,
        delay_s: float = 0.0,
        srv_delay_s: float = 0.0,
    ) -> None:
        self._names = names
        self._services = services or {}
        self._delay_s = delay_s
        self._srv_delay_s = srv_delay_s
        self.asked: list[str] = []

    async def resolve(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        await wait(self._delay_s)
        if name not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, f"no address for {name}")
        return self._names[name]

    async def resolve_srv(self, name: str) -> Sequence[SrvRecord]:
        self.asked.append(name)
        await wait(self._srv_delay_s)
        return self._services.get(name, [])


async def wait(seconds: float) -> None:
    if seconds == FOREVER:
        await asyncio.get_running_loop().create_future()
    await asyncio.sleep(seconds)


def resolved(resolver: Resolver, uri: str) -> tuple[list[TransportAddress], float]:
    """The addresses, and how many virtual seconds that took. Nothing is left running."""

    async def main() -> tuple[list[TransportAddress], float]:
        host: Host = resolver  # type: ignore[assignment]  # a part of one
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            return await resolve_server(host, ServerUri.parse(uri)), loop.time() - start
        finally:
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return run(main())


def addresses(port: int, *hosts: str) -> list[TransportAddress]:
    return [TransportAddress(host, port) for host in hosts]


def srv(host: str, port: int) -> SrvRecord:
    return SrvRecord(host=host, port=port)


class TestAddresses:
    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("stun:192.0.2.1", ("192.0.2.1", 3478)),
            ("stun:192.0.2.1:19302", ("192.0.2.1", 19302)),
            ("stun:[2001:db8::1]", ("2001:db8::1", 3478)),
            ("stun:[2001:DB8::0:1]:9", ("2001:db8::1", 9)),
        ],
    )
    def test_an_ip_address_asks_nobody(self, uri: str, expected: tuple[str, int]) -> None:
        resolver = Resolver({})
        assert resolved(resolver, uri) == ([expected], 0.0)
        assert resolver.asked == []

    @pytest.mark.parametrize("name", ["123", "1.2.3", "1.2.3.4.5", "256.1.1.1"])
    def test_a_name_of_digits_is_a_name(self, name: str) -> None:
        """Not an address that blows up later."""
        assert resolved(Resolver({name: ["192.0.2.1"]}), f"stun:{name}:1")[0] == addresses(1, "192.0.2.1")

    def test_at_most_eight(self) -> None:
        many = [f"192.0.2.{index}" for index in range(1, 20)]
        assert resolved(Resolver({"s.example": many}), "stun:s.example:1")[0] == addresses(1, *many[:8])
        records = [srv("s.example", port) for port in (1, 2)]
        found, _ = resolved(Resolver({"s.example": many}, {"_stun._udp.s.example": records}), "stun:s.example")
        assert found == addresses(1, *many[:8])


class TestServices:
    """RFC 8489, 8: SRV where the URI has no port; else, and if there is none, A and AAAA with the default port."""

    SERVICES = {"_stun._udp.s.example": [srv("b.example", 5000), srv("a.example", 6000)]}  # noqa: RUF012
    NAMES = {"s.example": ["192.0.2.9"], "a.example": ["192.0.2.1"], "b.example": ["2001:db8::2", "192.0.2.2"]}  # noqa: RUF012

    def test_the_records_in_their_order(self) -> None:
        expected = [*addresses(5000, "2001:db8::2", "192.0.2.2"), *addresses(6000, "192.0.2.1")]
        assert resolved(Resolver(self.NAMES, self.SERVICES), "stun:s.example") == (expected, 0.0)

    def test_a_port_rules_them_out(self) -> None:
        resolver = Resolver(self.NAMES, self.SERVICES)
        assert resolved(resolver, "stun:s.example:3479")[0] == addresses(3479, "192.0.2.9")
        assert resolver.asked == ["s.example"]

    def test_none(self) -> None:
        assert resolved(Resolver(self.NAMES), "stun:s.example")[0] == addresses(3478, "192.0.2.9")

    def test_a_target_without_an_address_is_passed_over(self) -> None:
        names = {"s.example": ["192.0.2.9"], "a.example": ["192.0.2.1"]}
        assert resolved(Resolver(names, self.SERVICES), "stun:s.example")[0] == addresses(6000, "192.0.2.1")

    def test_no_target_has_an_address(self) -> None:
        names = {"s.example": ["192.0.2.9"]}
        assert resolved(Resolver(names, self.SERVICES), "stun:s.example")[0] == addresses(3478, "192.0.2.9")

    def test_they_are_enough_where_the_name_itself_has_no_address(self) -> None:
        names = {"a.example": ["192.0.2.1"]}
        assert resolved(Resolver(names, self.SERVICES), "stun:s.example")[0] == addresses(6000, "192.0.2.1")


class TestSlowResolvers:
    def test_services_are_waited_for_half_a_second_while_addresses_are_asked_for(self) -> None:
        resolver = Resolver({"s.example": ["192.0.2.9"]}, delay_s=0.4, srv_delay_s=FOREVER)
        found, seconds = resolved(resolver, "stun:s.example")
        assert found == addresses(3478, "192.0.2.9") and seconds == pytest.approx(0.5)
        assert sorted(resolver.asked) == ["_stun._udp.s.example", "s.example"]

    def test_services_that_are_found_do_not_wait_for_the_address_of_the_name(self) -> None:
        class OnlyTargets(Resolver):
            async def resolve(self, name: str) -> Sequence[str]:
                if name == "s.example":
                    await wait(FOREVER)
                return await super().resolve(name)

        resolver = OnlyTargets({"a.example": ["192.0.2.1"]}, {"_stun._udp.s.example": [srv("a.example", 7)]})
        assert resolved(resolver, "stun:s.example") == (addresses(7, "192.0.2.1"), 0.0)

    def test_no_such_name(self) -> None:
        with pytest.raises(OSError, match="no address for"):
            resolved(Resolver({}, srv_delay_s=FOREVER), "stun:s.example")

    def test_giving_up_leaves_nothing_running(self) -> None:
        async def main() -> None:
            host: Host = Resolver({}, delay_s=FOREVER, srv_delay_s=FOREVER)  # type: ignore[assignment]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10):
                    await resolve_server(host, ServerUri.parse("stun:s.example"))
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run(main())
