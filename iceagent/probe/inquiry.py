"""Which servers answer, and what do they see?

STUN servers, and those TURN servers that are asked over UDP: most are both (what they relay is ``relays.py``'s). Every
server is asked over every IP version from the socket that the routes choose, one socket per local address, so that
answers can be compared. The first servers outside this host that answer are asked more: how the ports of new sockets
come out, and the tests of RFC 5780, with sockets of their own (4.4: "sensitive to prior state on the NAT").

One slow step holds up no other one. All ends at the deadline; where there are answers, silent servers are given up
earlier.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any

from iceagent.config import Config
from iceagent.gather.host import HostAddress
from iceagent.gather.servers import resolve_server
from iceagent.gather.stun_queries import MappedAddress, QueryFailed, StunQueries
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import Host, Interface
from iceagent.probe.report import ServerRow, ServerStatus
from iceagent.probe.sockets import Workbench, source_for
from iceagent.probe.verdict import Behaviour, Findings, Observation, is_own
from relay.behaviour import BehaviourMeasured, BehaviourProbe
from relay.uri import ServerUri

__all__ = ["Inquiry"]

# Where others answered, a silent server is given up after three requests (0, 0.5 and 1.5 s) and a long round trip.
PATIENCE_S = 2.0
# Requests at 0, 0.5, 1.5 and 3.5 s, and what is waited after the last, in units of the first interval.
SENDS, LAST_WAIT_RTOS = 4, 3
# New sockets whose ports show how the NAT allocates them. Each costs a mapping; the burst of requests is as large.
SAMPLES = 5
# Servers, per IP version, that the tests of RFC 5780 are tried with.
MAX_DISCOVERIES = 3
# Addresses of one name, per IP version, that are asked. Two show whether the mapping depends on the destination.
MAX_ADDRESSES = 2


class Inquiry:
    """Asks the servers, once.

    Args:
        host: where we ask from.
        interfaces: its interfaces.
        config: which addresses may be used, and how sockets are opened.
        timeout_s: seconds for everything.
        system_rng: for transaction ids and ports.
        tell: hears what is being done, a phrase for a person.
    """

    def __init__(
        self,
        host: Host,
        interfaces: Sequence[Interface],
        config: Config,
        *,
        timeout_s: float,
        system_rng: Random,
        tell: Callable[[str], None],
    ) -> None:
        self._host = host
        self._interfaces = interfaces
        self._config = config
        self._timeout_s = timeout_s
        self._system_rng = system_rng
        self._tell = tell
        self._queries = self._new_queries()
        self._bench = Workbench(host, config, system_rng)
        self._driver = self._bench.run(self._queries, self._on_event)
        self._bases: dict[str, TransportAddress] = {}
        self._answers: dict[tuple[TransportAddress, TransportAddress], asyncio.Future[Event]] = {}
        self._started = 0.0
        self._limit = asyncio.timeout(None)
        self._busy = 0
        self._discoveries: Counter[int] = Counter()
        self._sampled: set[int] = set()
        self._rows: dict[tuple[str, int | None], ServerRow] = {}
        self._observations: list[Observation] = []
        self._samples: list[Observation] = []
        self._probes: list[tuple[str, TransportAddress, BehaviourProbe]] = []

    async def run(self, uris: Sequence[str]) -> None:
        """Ask all there is to ask; :meth:`findings` has the results, also where this was cancelled."""
        self._started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout_s) as self._limit:
                await asyncio.gather(*(self._examine(uri) for uri in dict.fromkeys(uris)))
        except TimeoutError:
            # What is still silent stays noted as such.
            pass
        finally:
            self._bench.close()

    def note_failure(self, uri: str, reason: str) -> None:
        """A server of this host's own could not even be started."""
        self._note(uri, None, ServerStatus.FAILED, reason, is_outside=False)

    def note_sight(self, seen: Observation) -> None:
        """A TURN server told us our address together with a relayed one. It counts where it does not do so when it is
        asked like a STUN server.
        """
        row = self._rows.get((seen.uri, seen.server.version))
        if row is None or row.status is not ServerStatus.ANSWERED:
            is_outside = not is_own(seen.server.host, self._interfaces)
            self._note(seen.uri, seen.server.version, ServerStatus.ANSWERED, "", is_outside)
            self._observations.append(seen)

    def findings(self, *, is_embedded: bool = False) -> Findings:
        """What was found out so far."""
        return Findings(
            interfaces=self._interfaces,
            observations=tuple(self._observations),
            samples=tuple(self._samples),
            behaviours=tuple(_behaviour(*each) for each in self._probes),
            servers=tuple(self._rows.values()),
            is_embedded=is_embedded,
        )

    async def _examine(self, uri: str) -> None:
        """Ask one server all there is to ask it."""
        parsed = ServerUri.parse(uri)
        if parsed.is_secure:
            self._note(uri, None, ServerStatus.NOT_ASKED, "STUN over TLS or DTLS is not supported")
            return
        self._note(uri, None, ServerStatus.FAILED, f"its name did not resolve within {self._timeout_s:g} s")
        try:
            addresses = await resolve_server(self._host, parsed)
        except OSError as error:
            self._note(uri, None, ServerStatus.FAILED, f"its name does not resolve ({error.strerror or error})")
            return
        del self._rows[uri, None]
        wanted = [each for version in (4, 6) for each in self._usable(uri, addresses, version)]
        await asyncio.gather(*(self._ask(uri, server) for server in wanted))

    def _usable(self, uri: str, addresses: Sequence[TransportAddress], version: int) -> list[TransportAddress]:
        found = [each for each in addresses if each.version == version]
        if found and not (self._config.ipv6 if version == 6 else self._config.ipv4):
            self._note(uri, version, ServerStatus.NOT_ASKED, f"IPv{version} is switched off")
            return []
        return found[:MAX_ADDRESSES]

    async def _ask(self, uri: str, server: TransportAddress) -> None:
        is_outside = not is_own(server.host, self._interfaces)
        source = source_for(self._host, self._interfaces, self._config, server, is_outside=is_outside)
        if source is None:
            reason = f"this host has no IPv{server.version} route to it"
            self._note(uri, server.version, ServerStatus.NOT_ASKED, reason, is_outside)
            return
        self._tell(f"asking {uri}")
        self._note(uri, server.version, ServerStatus.FAILED, "no response", is_outside)
        try:
            base = self._base(source)
        except OSError as error:
            self._note(uri, server.version, ServerStatus.FAILED, f"no socket ({error.strerror or error})", is_outside)
            return
        event = await self._answer(base, server)
        if isinstance(event, MappedAddress):
            self._note(uri, server.version, ServerStatus.ANSWERED, "", is_outside)
            self._observations.append(_observation(event, uri))
            await self._follow_up(uri, server, source, is_outside)
        elif isinstance(event, QueryFailed):
            self._note(uri, server.version, ServerStatus.FAILED, event.reason, is_outside)

    def _base(self, source: HostAddress) -> TransportAddress:
        base = self._bases.get(source.host)
        if base is None:
            base = self._bases[source.host] = self._bench.open(source)
        return base

    async def _answer(self, base: TransportAddress, server: TransportAddress) -> Event:
        answer = self._answers.get((base, server))
        if answer is None:
            answer = self._answers[base, server] = asyncio.get_running_loop().create_future()
            self._driver.command(self._queries.ask, base, server)
        return await asyncio.shield(answer)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, MappedAddress | QueryFailed):
            answer = self._answers.get((event.base, event.server))
            if answer is not None and not answer.done():
                answer.set_result(event)

    async def _follow_up(self, uri: str, server: TransportAddress, source: HostAddress, is_outside: bool) -> None:
        """An answer came: ask more of a server outside, and wait less for the silent ones."""
        self._keep_busy(+1)
        try:
            if is_outside:
                await asyncio.gather(*self._jobs(uri, server, source))
        finally:
            self._keep_busy(-1)

    def _jobs(self, uri: str, server: TransportAddress, source: HostAddress) -> list[Coroutine[Any, Any, None]]:
        version = server.version
        jobs: list[Coroutine[Any, Any, None]] = []
        if version not in self._sampled:
            self._sampled.add(version)
            jobs.append(self._sample(uri, server, source))
        if self._discoveries[version] < MAX_DISCOVERIES:
            self._discoveries[version] += 1
            jobs.append(self._discover(uri, server, source))
        return jobs

    def _keep_busy(self, change: int) -> None:
        """Where nothing but silent servers is left, patience ends earlier."""
        self._busy += change
        limit_s = self._timeout_s if self._busy else min(PATIENCE_S, self._timeout_s)
        if not self._limit.expired():
            self._limit.reschedule(self._started + limit_s)

    async def _discover(self, uri: str, server: TransportAddress, source: HostAddress) -> None:
        """The tests of RFC 5780; what they know by the deadline counts."""
        self._tell(f"testing the NAT with {uri}")
        done = asyncio.Event()

        def on_event(event: Event) -> None:
            if isinstance(event, BehaviourMeasured):
                done.set()

        bench = Workbench(self._host, self._config, self._system_rng)
        try:
            base, fresh_base = bench.open(source), bench.open(source)
            probe = BehaviourProbe((server,), base, fresh_base, system_rng=self._system_rng)
            self._probes.append((uri, base, probe))
            bench.run(probe, on_event).command(probe.start)
            await done.wait()
        except OSError:
            # No free port: the comparison of servers has to do.
            pass
        finally:
            bench.close()

    async def _sample(self, uri: str, server: TransportAddress, source: HostAddress) -> None:
        """Let the server see new sockets."""
        queries = self._new_queries()
        found: dict[TransportAddress, Observation | None] = {}
        all_done = asyncio.Event()

        def on_event(event: Event) -> None:
            if isinstance(event, MappedAddress):
                found[event.base] = _observation(event, uri)
            if not queries.pending:
                all_done.set()

        bench = Workbench(self._host, self._config, self._system_rng)
        driver = bench.run(queries, on_event)
        try:
            for base in [bench.open(source) for _ in range(SAMPLES)]:
                found[base] = None
                driver.command(queries.ask, base, server)
            async with asyncio.timeout(PATIENCE_S):
                await all_done.wait()
        except OSError:
            # No free port, or (TimeoutError) too few answers: those that came count.
            pass
        finally:
            bench.close()
        # In the order of asking, whatever order the answers came in.
        self._samples += [each for each in found.values() if each is not None]

    def _new_queries(self) -> StunQueries:
        config = self._config
        return StunQueries(
            self._system_rng, ta_s=config.ta_s, burst=config.burst, rto_s=config.rto_s, rc=SENDS, rm=LAST_WAIT_RTOS
        )

    def _note(self, uri: str, version: int | None, status: ServerStatus, reason: str, is_outside: bool = True) -> None:
        """Remember what became of a server; of its addresses, the best one counts."""
        old = self._rows.get((uri, version))
        if old is None or old.status is not ServerStatus.ANSWERED:
            self._rows[uri, version] = ServerRow(
                uri=uri, version=version, status=status, is_outside=is_outside, reason=reason
            )


def _observation(event: MappedAddress, uri: str) -> Observation:
    rtt_ms = None if event.rtt_s is None else event.rtt_s * 1000
    return Observation(base=event.base, server=event.server, uri=uri, mapped=event.mapped, rtt_ms=rtt_ms)


def _behaviour(uri: str, base: TransportAddress, probe: BehaviourProbe) -> Behaviour:
    """What is known by now. Only the first socket's answers can be compared: the other one asks for detours."""
    report = probe.report
    seen = [each for each in report.observations if each.base == base]
    how_mapping, how_filtering = report.evidence[-2:]
    return Behaviour(
        version=base.version,
        mapping=report.mapping,
        filtering=report.filtering,
        observations=tuple(
            Observation(base=each.base, server=each.server, uri=uri, mapped=each.mapped, rtt_ms=each.rtt_ms)
            for each in seen
        ),
        how_mapping=f"{uri}: {how_mapping}",
        how_filtering=f"{uri}: {how_filtering}",
    )
