"""Several coturn that share their users through Redis, as ``docs/turn.md`` shows it; one of them dies in mid-session."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable

import pytest

from iceagent import IceServer, RelayLost, TurnCredentials
from iceagent.events import LocalCandidateFound
from iceagent.lab import Lab
from iceagent.lab.services import REDIS_PORT, Service, coturn, redis
from tests.lab.test_relays import Call, call, home, relay

pytestmark = pytest.mark.natlab_needs("turnserver", "redis-server", "redis-cli")

REALM = "lab"
NEW_SECRET = "south"
LOST_WITHIN_S = 4.0


class Fleet:
    """One Redis and two coturn that know no user by themselves.

    Attributes:
        services: of coturn, by address.
    """

    def __init__(self, lab: Lab, *options: str) -> None:
        self.database = lab.machine("database")
        redis(self.database)
        users = f"--redis-userdb=ip={self.database.address} dbname=0 port={REDIS_PORT} connect_timeout=5"
        machines = [lab.machine(name) for name in ("one", "other")]
        self.services: dict[str, Service] = {
            machine.address: coturn(machine, users, *options, realm=REALM) for machine in machines
        }

    def command(self, *words: str) -> None:
        self.database.run(["redis-cli", "-e", "-h", self.database.address, "-p", str(REDIS_PORT), *words])

    def urls(self) -> list[str]:
        return [f"turn:{host}?transport=udp" for host in self.services]

    def other(self, host: str) -> str:
        (other,) = set(self.services) - {host}
        return other


Entries = Callable[[Fleet, bool], tuple[IceServer, ...]]
Start = Callable[[Lab], tuple[Fleet, IceServer]]


def with_users(lab: Lab) -> tuple[Fleet, IceServer]:
    """Long-term users."""
    fleet = Fleet(lab)
    key = hashlib.md5(f"u:{REALM}:pw".encode(), usedforsecurity=False).hexdigest()
    fleet.command("set", f"turn/realm/{REALM}/user/u/key", key)
    return fleet, IceServer(urls=(), username="u", credential="pw")


def with_secrets(lab: Lab) -> tuple[Fleet, IceServer]:
    """Time-limited users of the REST draft; there are two secrets, as while one takes the other's place."""
    fleet = Fleet(lab, "--use-auth-secret")
    fleet.command("sadd", f"turn/realm/{REALM}/secret", "north", NEW_SECRET)

    async def credentials() -> TurnCredentials:
        username = f"{int(time.time()) + 600}:me"
        digest = hmac.new(NEW_SECRET.encode(), username.encode(), hashlib.sha1).digest()
        return TurnCredentials(username=username, password=base64.b64encode(digest).decode(), lifetime_s=600.0)

    return fleet, IceServer(urls=(), credentials=credentials)


def entry(account: IceServer, *urls: str) -> IceServer:
    return IceServer(
        urls=urls, username=account.username, credential=account.credential, credentials=account.credentials
    )


def relays(made: Call, name: str) -> list[str]:
    """Whose addresses a side's candidates have been, in their order."""
    return [event.candidate.address.host for event in made.of(LocalCandidateFound, name)]


def carrier(made: Call, name: str) -> str:
    """Whose relay a side sends by."""
    path = (made.a if name == "a" else made.b).path()
    assert path is not None
    return path.local.address.host


def fall(fleet: Fleet, host: str, how: str) -> None:
    if how == "program":
        fleet.services[host].kill()
    else:
        fleet.services[host].machine.set_link(is_up=False)


@pytest.mark.parametrize("how", ["program", "machine"])
@pytest.mark.parametrize("start", [with_users, with_secrets])
async def test_two_allocations_and_one_server_dies(natlab: Lab, start: Start, how: str) -> None:
    fleet, account = start(natlab)
    config = relay(fleet.database, servers=tuple(entry(account, url) for url in fleet.urls()))
    async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), config) as made:
        await made.connect()
        await made.until(lambda: all(len(relays(made, name)) == 2 for name in "ab"))
        assert set(relays(made, "a")) == set(relays(made, "b")) == set(fleet.services)
        await made.talk()
        dead = carrier(made, "a")
        began = time.monotonic()
        fall(fleet, dead, how)
        await made.talk(lambda: bool(made.of(RelayLost, "a")))
        print("LOST after", time.monotonic() - began, made.of(RelayLost))
        assert time.monotonic() - began < LOST_WITHIN_S
        assert {address.host for lost in made.of(RelayLost) for address in lost.relayed} == {dead}
        await made.talk()
        print("TALK after", time.monotonic() - began)
        assert carrier(made, "a") == carrier(made, "b") == fleet.other(dead)


@pytest.mark.parametrize("how", ["program", "machine"])
@pytest.mark.parametrize("start", [with_users, with_secrets])
async def test_one_allocation_is_made_again_at_the_other_server(natlab: Lab, start: Start, how: str) -> None:
    fleet, account = start(natlab)
    config = relay(fleet.database, servers=(entry(account, *fleet.urls()),))
    async with call(home(natlab, "symmetric"), home(natlab, "symmetric"), config) as made:
        await made.connect()
        await made.talk()
        dead = carrier(made, "a")
        assert relays(made, "a") == [dead]
        began = time.monotonic()
        fall(fleet, dead, how)
        await made.talk(lambda: bool(made.of(RelayLost, "a")) and len(relays(made, "a")) > 1)
        print("LOST after", time.monotonic() - began, made.of(RelayLost))
        assert relays(made, "a") == [dead, fleet.other(dead)]
        await made.talk()
        print("TALK after", time.monotonic() - began)
        assert carrier(made, "a") == carrier(made, "b") == fleet.other(dead)
