"""What if this host stands behind a 1:1 NAT that it cannot see (cloud, container)?

``Config.external_addresses`` names public addresses; each base of the local address (or, where none is named, of the
same family) gets a server-reflexive candidate there with its own port: a 1:1 NAT keeps ports.
"""

from __future__ import annotations

from collections.abc import Callable

from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config
from iceagent.gather.bases import Base
from iceagent.net.address import TransportAddress, canonical_host, ip_address

__all__ = ["External"]


class External:
    """Adds the configured public addresses."""

    is_done = True

    def __init__(self, config: Config, found: Callable[[Candidate], object]) -> None:
        self._addresses = {
            canonical_host(public): None if local is None else canonical_host(local)
            for public, local in config.external_addresses.items()
        }
        self._found = found

    def start(self, base: Base) -> None:
        """A base came up."""
        for public, local in self._addresses.items():
            if self._applies(base.address, public, local):
                address = TransportAddress(public, base.address.port)
                self._found(base.candidate(CandidateType.SERVER_REFLEXIVE, address, "configured external address"))

    def stop(self, base: Base) -> None:
        """Nothing is kept per base."""

    def close(self) -> None:
        """Nothing is open."""

    @staticmethod
    def _applies(base: TransportAddress, public: str, local: str | None) -> bool:
        if local is not None:
            return base.host == local
        ip = ip_address(base.host)
        return ip.version == ip_address(public).version and not ip.is_loopback and not ip.is_link_local
