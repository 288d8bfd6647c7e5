"""What does a server tell Prometheus?

Read when it is asked for, from what the server counts anyway: nothing is paid for by who is served. It is answered by a
thread of its own, over HTTP, to whoever may connect: bind it to where only your monitoring does.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from iceagent.net.address import TransportAddress
from relay.server import Server

__all__ = ["Exporter"]


class Exporter:
    """Answers while it is open.

    Args:
        server: whose counters.
        address: where.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, server: Server, address: TransportAddress) -> None:
        registry = CollectorRegistry()
        registry.register(_Counters(server))
        self._http, self._thread = start_http_server(address.port, address.host, registry)
        host, port = self._http.server_address[:2]
        self.address = TransportAddress(str(host), int(port))

    def close(self) -> None:
        """Answer no more."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Counters(Collector):
    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterable[Metric]:
        server = self._server
        yield GaugeMetricFamily("iceagent_allocations", "TURN allocations now", value=server.allocations)
        requests = CounterMetricFamily("iceagent_requests", "STUN and TURN requests", labels=["kind"])
        # The first request of every client is answered with 401: it asks for credentials.
        errors = CounterMetricFamily("iceagent_errors", "Error responses", labels=["kind", "code"])
        drops = CounterMetricFamily("iceagent_dropped", "Messages that were not answered or relayed", labels=["reason"])
        kinds = {
            "stun_datagram": server.counters,
            "stun_stream": server.stream_counters,
            "turn": server.turn_counters,
        }
        for kind, counters in kinds.items():
            requests.add_metric([kind], counters["requests"])
            for name, count in sorted(counters.items()):
                what, _, detail = name.partition(": ")
                if what == "errors" and detail:
                    errors.add_metric([kind, detail], count)
                elif what == "dropped":
                    drops.add_metric([f"{kind}: {detail}"], count)
        wrong = server.turn_counters["wrong passwords"]
        yield from (requests, errors, drops)
        yield CounterMetricFamily("iceagent_wrong_passwords", "TURN requests signed with a wrong one", value=wrong)
        packets = CounterMetricFamily("iceagent_relayed_packets", "Datagrams relayed", labels=["direction"])
        octets = CounterMetricFamily("iceagent_relayed_bytes", "Of their payload", labels=["direction"])
        for direction, (count, size) in zip(("to_peers", "from_peers"), server.relayed(), strict=True):
            packets.add_metric([direction], count)
            octets.add_metric([direction], size)
        yield from (packets, octets)
