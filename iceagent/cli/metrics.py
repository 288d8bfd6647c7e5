"""What does a server tell Prometheus?

Read when it is asked for, from what the server counts anyway: nothing is paid for by who is served. It is answered by a
few threads, over HTTP, to whoever may connect: bind it to where only your monitoring does. Of more connections than
:data:`MAX_CONNECTIONS` the oldest is ended, and so is one that is silent for :data:`SILENCE_S`.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from iceagent.net.address import TransportAddress
from relay.server import Server

__all__ = ["MAX_CONNECTIONS", "SILENCE_S", "Exporter", "ServerCounters", "Totals"]

MAX_CONNECTIONS = 16
SILENCE_S = 10.0
# How often the thread looks whether it is to end.
POLL_S = 0.1


class Exporter:
    """Answers while it is open.

    Args:
        collector: what is told; it is asked in a thread of its own.
        address: where.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, collector: Collector, address: TransportAddress) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        self._http = _Http(address)
        self._http.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(POLL_S,), daemon=True)
        self._thread.start()
        host, port = self._http.server_address[:2]
        self.address = TransportAddress(str(host), int(port))

    def close(self) -> None:
        """Answer no more."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


class _Http(ThreadingMixIn, WSGIServer):
    """A thread for each connection, which has one request."""

    daemon_threads = True
    # What the kernel keeps between two turns of the thread; with socketserver's five, others would wait for seconds.
    request_queue_size = 128

    def __init__(self, address: TransportAddress) -> None:
        self.address_family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        self._open: dict[socket.socket, None] = {}
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        """Bind, and ask no name server for our own name, as HTTPServer does."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Make room for it; called by one thread."""
        # Others remove theirs at any moment.
        waiting = list(self._open)
        for oldest in waiting[: max(0, len(waiting) - MAX_CONNECTIONS + 1)]:
            self._open.pop(oldest, None)
            with contextlib.suppress(OSError):  # It has ended by itself.
                oldest.shutdown(socket.SHUT_RDWR)
        self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """It is answered, or has ended."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up or says nothing is no error of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Totals(Collector):
    """Counters that are numbers and no more.

    Args:
        prefix: of their names, behind ``iceagent_``.
        texts: what each of them is, by name.
        read: tells them all; called in another thread.
    """

    def __init__(self, prefix: str, texts: Mapping[str, str], read: Callable[[], Mapping[str, int]]) -> None:
        self._prefix = prefix
        self._texts = texts
        self._read = read

    def collect(self) -> Iterable[Metric]:
        counts = self._read()
        for name, text in self._texts.items():
            yield CounterMetricFamily(f"iceagent_{self._prefix}_{name}", text, value=counts.get(name, 0))


class ServerCounters(Collector):
    """What a STUN and TURN server counts."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterable[Metric]:
        server = self._server
        yield GaugeMetricFamily("iceagent_allocations", "TURN allocations now", value=server.allocations)
        requests = CounterMetricFamily("iceagent_requests", "STUN and TURN requests", labels=["kind"])
        # The first request of every client is answered with 401: it asks for credentials.
        errors = CounterMetricFamily("iceagent_errors", "Error responses", labels=["kind", "code"])
        drops = CounterMetricFamily("iceagent_dropped", "Messages that were not answered or relayed", labels=["reason"])
        # Copies, made at once: the server goes on counting in its own thread.
        kinds = {
            "stun_datagram": Counter(server.counters),
            "stun_stream": Counter(server.stream_counters),
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
        wrong = kinds["turn"]["wrong passwords"]
        yield from (requests, errors, drops)
        yield CounterMetricFamily("iceagent_wrong_passwords", "TURN requests signed with a wrong one", value=wrong)
        packets = CounterMetricFamily("iceagent_relayed_packets", "Datagrams relayed", labels=["direction"])
        octets = CounterMetricFamily("iceagent_relayed_bytes", "Of their payload", labels=["direction"])
        for direction, (count, size) in zip(("to_peers", "from_peers"), server.relayed(), strict=True):
            packets.add_metric([direction], count)
            octets.add_metric([direction], size)
        yield from (packets, octets)
