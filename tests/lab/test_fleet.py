"""Several coturn that share their users through Redis, as ``docs/turn.md`` shows; one of them dies in mid-session."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from iceagent import IceServer, RelaySilent, TurnCredentials
from iceagent.events import LocalCandidateFound
from iceagent.lab import Lab, Machine
from iceagent.lab.services import REDIS_PORT, Service, coturn, redis
from tests.lab.test_relays import Call, call, home, relay

pytestmark = pytest.mark.natlab_needs("turnserver", "redis-server", "redis-cli")

REALM = "lab"
SECRETS = ("north", "south")
# To be replaced by those of the fleet.
NOBODY = ("turn:192.0.2.1",)
# Three seconds, and what two busy cores may add.
LOST_WITHIN_S = 4.0


class Fleet:
    """One Redis and two coturn, none of which knows a user by itself.

    Attributes:
        services: of coturn, by address.
    """

    def __init__(self, lab: Lab, *options: str) -> None:
        self.database = lab.machine("database")
        redis(self.database)
        users = f"--redis-userdb=ip={self.database.address} dbname=0 port={REDIS_PORT}"
        machines = [lab.machine(name) for name in ("one", "other")]
        self.services: dict[str, Service] = {
            machine.address: coturn(machine, users, *options, realm=REALM) for machine in machines
        }

    @property
    def urls(self) -> list[str]:
        return [f"turn:{host}?transport=udp" for host in self.services]

    def store(self, *words: str) -> None:
        """A command to Redis."""
        self.database.run(["redis-cli", "-e", "-h", self.database.address, *words])

    def other(self, host: str) -> str:
        (other,) = set(self.services) - {host}
        return other


Start = Callable[[Lab], tuple[Fleet, IceServer]]
Fall = Callable[[Service], None]


def with_users(lab: Lab) -> tuple[Fleet, IceServer]:
    """A user and his key."""
    fleet = Fleet(lab)
    key = hashlib.md5(f"u:{REALM}:pw".encode(), usedforsecurity=False).hexdigest()
    fleet.store("set", f"turn/realm/{REALM}/user/u/key", key)
    return fleet, IceServer(urls=NOBODY, username="u", credential="pw")


def with_secrets(lab: Lab) -> tuple[Fleet, IceServer]:
    """Time-limited users; there are two secrets, as while one takes the other's place, and each agent has another."""
    fleet = Fleet(lab, "--use-auth-secret")
    fleet.store("sadd", f"turn/realm/{REALM}/secret", *SECRETS)
    secrets = iter(SECRETS * 2)

    async def credentials() -> TurnCredentials:
        username = f"{int(time.time()) + 600}:me"
        digest = hmac.new(next(secrets).encode(), username.encode(), hashlib.sha1).digest()
        return TurnCredentials(username=username, password=base64.b64encode(digest).decode(), lifetime_s=600.0)

    return fleet, IceServer(urls=NOBODY, credentials=credentials)


def pull_the_cable(service: Service) -> None:
    service.machine.set_link(is_up=False)


def relays(made: Call, name: str) -> list[str]:
    """Whose candidates a side had, in their order."""
    return [event.candidate.address.host for event in made.of(LocalCandidateFound, name)]


def carriers(made: Call) -> set[str]:
    """Which servers carry the data of either side."""
    paths = [path for path in (made.a.path(), made.b.path()) if path is not None]
    return {candidate.address.host for path in paths for candidate in (path.local, path.remote)}


async def outlive(fleet: Fleet, made: Call, fall: Fall) -> tuple[str, str]:
    """The server that carries the path of ``a`` dies, and the call goes on; returns that server and the other."""
    await made.talk()
    path = made.a.path()
    assert path is not None
    dead = path.local.address.host
    other = fleet.other(dead)
    began = time.monotonic()
    fall(fleet.services[dead])
    async with asyncio.TaskGroup() as group:
        # Data both ways after that became so.
        group.create_task(made.talk(lambda: carriers(made) == {other}))
        await made.until(lambda: bool(made.of(RelaySilent, "a")))
        assert time.monotonic() - began < LOST_WITHIN_S
    assert {address.host for silent in made.of(RelaySilent) for address in silent.relayed} == {dead}
    return dead, other


def homes(lab: Lab) -> tuple[Machine, Machine]:
    return home(lab, "symmetric"), home(lab, "symmetric")


DEATHS = pytest.mark.parametrize(
    ("start", "fall"),
    [(with_users, Service.kill), (with_secrets, Service.kill), (with_secrets, pull_the_cable)],
    ids=["users-killed", "secrets-killed", "secrets-unplugged"],
)


@DEATHS
async def test_an_allocation_at_each_server(natlab: Lab, start: Start, fall: Fall) -> None:
    fleet, account = start(natlab)
    servers = tuple(replace(account, urls=(url,)) for url in fleet.urls)
    async with call(*homes(natlab), relay(fleet.database, servers=servers)) as made:
        await made.connect()
        await made.until(lambda: all(set(relays(made, name)) == set(fleet.services) for name in "ab"))
        await outlive(fleet, made, fall)
        # Each had its own from the beginning.
        assert all(len(relays(made, name)) == 2 for name in "ab")


@DEATHS
async def test_one_allocation_is_made_again_at_the_other_server(natlab: Lab, start: Start, fall: Fall) -> None:
    fleet, account = start(natlab)
    servers = (replace(account, urls=tuple(fleet.urls)),)
    async with call(*homes(natlab), relay(fleet.database, servers=servers)) as made:
        await made.connect()
        dead, other = await outlive(fleet, made, fall)
        assert relays(made, "a") == [dead, other]
