"""Which two NATs can meet without a relay? Derived from RFC 4787's two words for a NAT. Pure."""

from __future__ import annotations

from iceagent.nat.kinds import Filtering, Mapping

__all__ = ["can_meet"]

Behaviour = tuple[Mapping, Filtering]


def can_meet(a: Behaviour, b: Behaviour) -> bool:
    """Whether two endpoints behind NATs with these behaviours find a direct path, without guessing ports.

    Where nothing is known of a NAT the answer is no; so it is where no UDP passes, which the laboratory writes like
    that. A host without a NAT (NONE) is like one behind EIM. A filter belongs to one mapping, that is, to one outside
    address (RFC 4787, 5 can also be read as if it belonged to the inside endpoint); the NATs are two, each gives a host
    one outside address (4.1, "Paired"), and no port is shared (4.2.1).

    Let ``a(d)`` be the outside address of a's socket towards ``d``, ``S`` the STUN server, so that ``a(S)`` is
    signalled.
    A path is a pair of addresses with ``x = a(y)`` and ``y = b(x)`` whose packets pass both filters.

    Both EIM: ``x = a(S)`` and ``y = b(S)``, known to both. Each one's own checks open its filter to the other. Always.

    One EIM, say a: ``x = a(S)``, and ``y = b(x)`` is no address that a knows, so b's check has to pass a's filter
    first. EIF lets it in; ADF too, as a has sent to ``b(S)``, which is on the same host; APDF does not: a never sent to
    that port. b's filter does not matter: what could come in at ``b(S)`` under EIF is answered from ``y``, to which a's
    filter is closed.

    Neither EIM: a's check leaves ``x' = a(b(S))``, which b does not know, for ``b(S)``, whose filter is open to S alone
    unless it is EIF. So one side must be EIF, say b; it answers from ``y' = b(x')``, not where a sent to: a's filter
    must let another port of the same host in (EIF or ADF). a then sends to ``y'`` from ``a(y')``. With ADM that is
    ``x'`` again, and the path is found; with APDM it is another ``x''``, which b, if it is ADM, answers from ``y'``
    (the same host), and the path is found; if both are APDM every answer shows a new address, for ever.
    """
    mappings, filterings = (a[0], b[0]), (a[1], b[1])
    if Mapping.UNKNOWN in mappings or Filtering.UNKNOWN in filterings:
        return False
    is_known_ahead = [mapping in (Mapping.EIM, Mapping.NONE) for mapping in mappings]
    if all(is_known_ahead):
        return True
    if any(is_known_ahead):
        known = a if is_known_ahead[0] else b
        return known[1] is not Filtering.APDF
    return Filtering.EIF in filterings and Filtering.APDF not in filterings and Mapping.ADM in mappings
