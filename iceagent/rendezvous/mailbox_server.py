"""How does a rendezvous server run?

One listener; over TLS where there is a certificate. Everything is decided in ``mailbox_http.py``; here bytes go in and
out, and one timer goes off.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from random import Random
from types import TracebackType
from typing import Self

from iceagent.net.address import TransportAddress
from iceagent.net.host import Host, Listener, Stream
from iceagent.rendezvous.mailbox import Mailbox
from iceagent.rendezvous.mailbox_http import MAX_CONNECTIONS, HttpMailbox, Write

__all__ = ["MailboxServer"]


class MailboxServer:
    """Answers while it is open; an async context manager, to be entered once.

    Args:
        host: whose sockets it uses.
        address: where it listens; port 0 takes a free one.
        ssl_context: a server's context, with its certificate loaded: HTTPS. ``None``: HTTP, and whoever listens on the
            way reads the passwords in descriptions.
        system_rng: makes tokens; not to be predictable.
        max_connections: open at once.

    Entering it raises :class:`OSError` where the address cannot be listened on.
    """

    def __init__(
        self,
        host: Host,
        address: TransportAddress,
        *,
        system_rng: Random,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._host = host
        self._address = address
        self._ssl_context = ssl_context
        self._core = HttpMailbox(Mailbox(system_rng=system_rng), max_connections=max_connections)
        self._listener: Listener | None = None
        self._streams: dict[int, Stream] = {}
        self._next_key = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = 0.0

    async def __aenter__(self) -> Self:
        self._listener = await self._host.listen_tcp(self._address, self._accept, ssl_context=self._ssl_context)
        self._address = self._listener.address
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> TransportAddress:
        """What it listens on."""
        return self._address

    @property
    def transport(self) -> str:
        """``http`` or ``https``."""
        return "http" if self._ssl_context is None else "https"

    @property
    def counters(self) -> Counter[str]:
        """See :class:`~iceagent.rendezvous.mailbox_http.HttpMailbox`."""
        return self._core.counters

    def close(self) -> None:
        """Answer no more; idempotent. Whoever waits is cut off, and asks elsewhere or later."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _accept(self, stream: Stream) -> _Client:
        key = self._next_key
        self._next_key += 1
        if self._listener is None:
            # A handshake that ended after we did.
            stream.close()
        else:
            self._streams[key] = stream
            self._core.handle_open(key, stream.remote_address.host, self._host.now())
            self.pump()
        return _Client(self, self._core, key, self._host)

    def pump(self) -> None:
        """Do what the core has to be done, and set the timer."""
        while (output := self._core.poll_output()) is not None:
            stream = self._streams.get(output.key)
            if stream is not None and isinstance(output, Write):
                stream.write(output.data)
            elif stream is not None:
                del self._streams[output.key]
                stream.close()
        deadline = self._core.poll_timeout()
        if deadline is None or self._listener is None:
            return
        if self._timer is not None:
            # Early does no harm.
            if self._armed_at <= deadline:
                return
            self._timer.cancel()
        self._armed_at = deadline
        self._timer = asyncio.get_running_loop().call_at(deadline, self._on_timer)

    def lost(self, key: int) -> None:
        """A stream was ended by the other side."""
        self._streams.pop(key, None)

    def _on_timer(self) -> None:
        self._timer = None
        self._core.handle_timeout(self._host.now())
        self.pump()


class _Client:
    """Hears one stream; implements :class:`iceagent.net.host.StreamListener`, and hears of a long queue."""

    def __init__(self, server: MailboxServer, core: HttpMailbox, key: int, host: Host) -> None:
        self._server = server
        self._core = core
        self._key = key
        self._host = host

    def data_received(self, stream: Stream, data: bytes) -> None:
        """The next bytes."""
        self._core.handle_data(self._key, data, self._host.now())
        self._server.pump()

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """The other side or the network ended it."""
        self._server.lost(self._key)
        self._core.handle_closed(self._key, self._host.now())
        self._server.pump()

    def writing_paused(self, stream: Stream) -> None:
        """It does not read its answers."""
        self._core.handle_blocked(self._key, True, self._host.now())
        self._server.pump()

    def writing_resumed(self, stream: Stream) -> None:
        """It does again."""
        self._core.handle_blocked(self._key, False, self._host.now())
        self._server.pump()
