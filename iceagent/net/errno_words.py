"""What does an errno of the network say, in words?

Linux's own (``strerror``), by the number alone: for cores, which ask no system. Pure.
"""

from __future__ import annotations

import errno

__all__ = ["errno_in_words"]

_WORDS = {
    errno.EACCES: "Permission denied",
    errno.EADDRINUSE: "Address already in use",
    errno.EADDRNOTAVAIL: "Cannot assign requested address",
    errno.EAFNOSUPPORT: "Address family not supported by protocol",
    errno.EAGAIN: "Resource temporarily unavailable",
    errno.EBADF: "Bad file descriptor",
    errno.ECONNABORTED: "Software caused connection abort",
    errno.ECONNREFUSED: "Connection refused",
    errno.ECONNRESET: "Connection reset by peer",
    errno.EHOSTDOWN: "Host is down",
    errno.EHOSTUNREACH: "No route to host",
    errno.EINVAL: "Invalid argument",
    errno.EMFILE: "Too many open files",
    errno.EMSGSIZE: "Message too long",
    errno.ENETDOWN: "Network is down",
    errno.ENETUNREACH: "Network is unreachable",
    errno.ENOBUFS: "No buffer space available",
    errno.ENODEV: "No such device",
    errno.ENOPROTOOPT: "Protocol not available",
    errno.ENOTCONN: "Transport endpoint is not connected",
    errno.EPERM: "Operation not permitted",
    errno.EPIPE: "Broken pipe",
    errno.EPROTO: "Protocol error",
    errno.ETIMEDOUT: "Connection timed out",
}


def errno_in_words(number: int) -> str:
    """The system's words for an errno; of one that no network gives, the number. 0 is a stream's orderly end."""
    if number == 0:
        return "it closed the connection"
    return _WORDS.get(number, f"error {number}")
