"""Which candidates of the peer are known, and how did they become so?

Signalled (RFC 8838, 8) or learnt from a check (RFC 8445, 7.3.1.3). A candidate that names another generation's user
name fragment waits for it, or is refused if that generation is over. One that was learnt and is signalled later keeps
its pairs.
"""

from __future__ import annotations

from collections.abc import Container

from iceagent.candidate import Candidate, CandidateType
from iceagent.core.admission import refusal
from iceagent.core.checklist import CheckList
from iceagent.core.context import Context
from iceagent.core.held import Held
from iceagent.core.pacing import RemoteBudget
from iceagent.core.responder import IncomingCheck
from iceagent.events import RemoteCandidateAdded, RemoteCandidateRefused
from iceagent.net.address import TransportAddress

__all__ = ["MAX_REMOTE_CANDIDATES", "Remotes"]

# Remote candidates signalled for one generation; each is looked at for every base.
MAX_REMOTE_CANDIDATES = 1000
# User name fragments of earlier generations that are remembered, to refuse their late candidates.
_MAX_OLD_UFRAGS = 10


class Remotes:
    """The peer's candidates of the present generation.

    Args:
        own: addresses of our sockets.
        budget: knows whether a check of ours was ever answered from an address.
    """

    __slots__ = (
        "_budget",
        "_candidates",
        "_context",
        "_count",
        "_forgotten",
        "_held",
        "_learnt",
        "_old_ufrags",
        "_own",
    )

    def __init__(
        self,
        context: Context,
        held: Held,
        own: Container[TransportAddress],
        budget: RemoteBudget,
    ) -> None:
        self._context = context
        self._held = held
        self._own = own
        self._budget = budget
        self._candidates: dict[tuple[int, TransportAddress], Candidate] = {}
        self._old_ufrags: list[str] = []
        # Not yet signalled, oldest first. Their type does not tell: a peer may signal a peer-reflexive candidate too.
        self._learnt: dict[tuple[int, TransportAddress], None] = {}
        self._count = 0
        self._forgotten = 0

    def add(self, candidate: Candidate, checklist: CheckList, via: str = "signalling") -> bool:
        """Take a candidate that was signalled, or told over a path; whether there is something new to check."""
        keys, ufrag = self._context.keys, candidate.ufrag
        if keys is None or (ufrag is not None and ufrag != keys.remote.ufrag):
            self._hold(candidate)
            return False
        key = (candidate.component, candidate.address)
        known = self._candidates.get(key)
        if known is not None and key not in self._learnt:
            return False
        reason = self._refusal(candidate)
        if reason is not None:
            self._refuse(candidate, reason)
            return False
        if known is not None:
            del self._learnt[key]
            checklist.replace_remote(candidate)
        self._candidates[key] = candidate
        checklist.add_remote(candidate)
        self._context.emit(RemoteCandidateAdded(candidate=candidate, via=via))
        return True

    def find_or_learn(self, check: IncomingCheck, component: int, checklist: CheckList) -> Candidate | None:
        """7.3.1.3. Learning Peer-Reflexive Candidates; they are not paired with other bases of ours."""
        known = self._candidates.get((component, check.source))
        if known is not None:
            return known
        candidate = self._candidate(check, component)
        reason = self._refusal(candidate)
        if reason is not None:
            self._refuse(candidate, reason)
            return None
        if len(self._learnt) >= self._context.config.max_peer_reflexive and not self._make_room(checklist):
            self._context.counters["peer-reflexive candidates over the limit"] += 1
            return None
        self._count += 1
        self._learnt[component, check.source] = None
        self._candidates[component, check.source] = candidate
        self._context.emit(RemoteCandidateAdded(candidate=candidate, via="check"))
        return candidate

    def withdraw(self, candidate: Candidate) -> Candidate | None:
        """The peer has none at this address any more: the candidate as we knew it."""
        key = (candidate.component, candidate.address)
        self._learnt.pop(key, None)
        return self._candidates.pop(key, None)

    def refuses(self, check: IncomingCheck, component: int) -> bool:
        """Whether no candidate can be made of a check's source."""
        if (component, check.source) in self._candidates:
            return False
        return self._refusal(self._candidate(check, component)) is not None

    def end_generation(self, ufrag: str) -> None:
        """The peer's credentials with this fragment are over, and so are its candidates."""
        self._old_ufrags = [*self._old_ufrags, ufrag][-_MAX_OLD_UFRAGS:]
        self._candidates.clear()
        self._learnt.clear()
        self._forgotten = 0

    def resume_generation(self, ufrag: str) -> None:
        """The peer goes on with these credentials after all."""
        self._old_ufrags = [each for each in self._old_ufrags if each != ufrag]

    def all(self) -> list[Candidate]:
        """Signalled and learnt, in that order of arrival."""
        return list(self._candidates.values())

    def _candidate(self, check: IncomingCheck, component: int) -> Candidate:
        return Candidate(
            foundation=f"r{check.priority}x{self._count}",
            component=component,
            priority=check.priority,
            address=check.source,
            type=CandidateType.PEER_REFLEXIVE,
        )

    def _hold(self, candidate: Candidate) -> None:
        if candidate.ufrag in self._old_ufrags:
            self._refuse(candidate, "it belongs to an earlier generation")
            return
        forgotten = self._held.hold_candidate(candidate)
        if forgotten is not None:
            self._refuse(forgotten, "too many candidates wait for a description")

    def _make_room(self, checklist: CheckList) -> bool:
        """Forget the oldest learnt candidate that never answered: it may come from a replayed request.

        Not without end: behind two NATs that map every destination anew, each check shows another address.
        """
        if self._forgotten >= self._context.config.max_peer_reflexive:
            return False
        for key in self._learnt:
            candidate = self._candidates[key]
            if not self._budget.has_answered(candidate.address):
                del self._candidates[key], self._learnt[key]
                self._forgotten += 1
                checklist.remove_remote(candidate)
                return True
        return False

    def _refusal(self, candidate: Candidate) -> str | None:
        config = self._context.config
        reason = refusal(candidate, config, self._own, config.components)
        if reason is None and len(self._candidates) >= MAX_REMOTE_CANDIDATES:
            return f"there are {MAX_REMOTE_CANDIDATES} already"
        return reason

    def _refuse(self, candidate: Candidate, reason: str) -> None:
        self._context.counters["remote candidates refused"] += 1
        self._context.emit(RemoteCandidateRefused(candidate=candidate, reason=reason))
