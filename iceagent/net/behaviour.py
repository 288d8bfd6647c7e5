"""What may a NAT do with a port, and with a stranger's packet?

The vocabulary of RFC 4787: how a NAT chooses the outside address of a flow (:class:`Mapping`, section 4.1) and which
packets it lets in (:class:`Filtering`, section 5). ``X:x`` is the internal endpoint, ``X':x'`` what the outside sees
of it, ``Y:y`` and ``Z:z`` are external endpoints. ``relay/behaviour.py`` measures these values, the probe reports
them, and the NAT models of the test kit are built from them.

Pure.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Filtering", "Mapping"]


class Mapping(Enum):
    """How the outside address of a flow is chosen (RFC 4787, 4.1).

    Attributes:
        EIM: Endpoint-Independent Mapping. "The NAT reuses the port mapping for subsequent packets sent from the same
            internal IP address and port (X:x) to any external IP address and port."
        ADM: Address-Dependent Mapping. "The NAT reuses the port mapping for subsequent packets sent from the same
            internal IP address and port (X:x) to the same external IP address, regardless of the external port."
        APDM: Address and Port-Dependent Mapping. "The NAT reuses the port mapping for subsequent packets sent from the
            same internal IP address and port (X:x) to the same external IP address and port while the mapping is still
            active."
        NONE: no translation; the outside sees X:x itself.
        UNKNOWN: not measured, or the measurements contradict each other.
    """

    EIM = "EIM"
    ADM = "ADM"
    APDM = "APDM"
    NONE = "none"
    UNKNOWN = "unknown"


class Filtering(Enum):
    """Which packets sent to X':x' reach X:x (RFC 4787, 5).

    Attributes:
        EIF: Endpoint-Independent Filtering. "The NAT forwards any packets destined to X:x. In other words, sending
            packets from the internal side of the NAT to any external IP address is sufficient to allow any packets
            back to the internal endpoint."
        ADF: Address-Dependent Filtering. "For receiving packets from a specific external endpoint, it is necessary for
            the internal endpoint to send packets first to that specific external endpoint's IP address."
        APDF: Address and Port-Dependent Filtering. "For receiving packets from a specific external endpoint, it is
            necessary for the internal endpoint to send packets first to that external endpoint's IP address and port."
        UNKNOWN: not measured, or no answer came where one must have.
    """

    EIF = "EIF"
    ADF = "ADF"
    APDF = "APDF"
    UNKNOWN = "unknown"
