"""Which exceptions can an application see, and whose fault is each?

::

    IceAgentError
     ├─ UsageError (ValueError)             we were called wrongly
     │   ├─ AgentClosed                     … after aclose()
     │   └─ NoPath                          … send() or recv() before there is a path
     ├─ PeerError (ValueError)              what the peer signalled is nonsense
     │   ├─ InvalidCandidate
     │   │   └─ UnsupportedCandidate        … or newer than we are
     │   └─ InvalidDescription
     ├─ ConnectFailed (ConnectionError)     no path exists, as far as could be tried
     ├─ ConsentLost (ConnectionError)       there was a path; the peer no longer answers on it (RFC 7675)
     ├─ ServerUnusable (OSError)            a STUN or TURN server cannot be used
     └─ UnsupportedPlatform (OSError)       the agent runs on Linux

Every message has the value and the limit it broke.
"""

from __future__ import annotations

__all__ = [
    "AgentClosed",
    "ConnectFailed",
    "ConsentLost",
    "IceAgentError",
    "InvalidCandidate",
    "InvalidDescription",
    "NoPath",
    "PeerError",
    "ServerUnusable",
    "UnsupportedCandidate",
    "UnsupportedPlatform",
    "UsageError",
]


class IceAgentError(Exception):
    """Base of every error of this package."""


class UsageError(IceAgentError, ValueError):
    """The call, or one of its arguments, is wrong."""


class AgentClosed(UsageError):
    """The agent was closed before or during the call."""


class NoPath(UsageError):
    """There is no usable path (yet, or any more)."""


class PeerError(IceAgentError, ValueError):
    """What the peer signalled breaks the grammar or the limits of its RFC."""


class InvalidCandidate(PeerError):
    """A candidate line or candidate that cannot be used; the message says why."""


class UnsupportedCandidate(InvalidCandidate):
    """A well-formed candidate line of a transport, type or kind of address that is not known here (RFC 8839, 5.1)."""


class InvalidDescription(PeerError):
    """Credentials, options or pacing that break RFC 8839."""


class ConnectFailed(IceAgentError, ConnectionError):
    """Every candidate pair failed (RFC 8445, 8.1.2), after the time RFC 8863 asks to wait."""


class ConsentLost(IceAgentError, ConnectionError):
    """No path has the peer's consent any more (RFC 7675)."""


class ServerUnusable(IceAgentError, OSError):
    """A STUN or TURN server could not be resolved, reached or understood."""


class UnsupportedPlatform(IceAgentError, OSError):
    """This system has no network layer of ours."""
