"""Does a peer of another make go along when ours finds a better path, or loses the one in use? What is possible, and
what is not.

Two homes behind port-restricted NATs, one TURN server for both, twenty datagrams a second both ways, signalling frozen.
What the peers do when a pair is nominated after the first one:

==================== =====================================================================================
aioice 0.13          obeys where its own check of that pair has succeeded. Once it is connected it makes none
                     any more, except of pairs that it learns by then; those that were under way are dropped.
libnice 0.1.21       obeys where the pair's priority is higher; it answers success to any other, and stays.
… renomination on    obeys a lower one too if neither end is the one in use.
==================== =====================================================================================

As the controlling side neither of them ever nominates another pair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from iceagent import AgentState
from iceagent.events import PathDoubted, PathTrusted, RestartAdvised, StateChanged
from iceagent.lab import Lab
from relay.upgrade import TIMINGS
from tests.interop.foreign import INTERVAL_S, Aioice, Homes, Libnice, Talk, talking

# Attributes of Binding messages that RFC 8445, 16.1 and RFC 8489, 18.3 list, with NOMINATION and NETWORK-COST, which
# others have too. A path message (0xC1CE) is none of them.
USERNAME, PRIORITY, USE_CANDIDATE, NOMINATION = 0x0006, 0x0024, 0x0025, 0xC001
KNOWN = {USERNAME, PRIORITY, USE_CANDIDATE, NOMINATION, 0xC057}
KNOWN |= {0x0008, 0x0009, 0x0020, 0x8028, 0x8029, 0x802A}

# Between a blackhole and data on another path (docs/paths.md), and a moment for two busy cores.
FAILOVER_S = 1.5
# A search for a direct path takes place every 2.5 s.
UPGRADE_S = 3.0
# A path that was left is not returned to for 5 s; then a search has to find it.
RETURN_S = 8.0
# Datagrams younger than this may still be on their way.
SETTLED_S = 0.5


async def side_by_side(*stories: Coroutine[Any, Any, None]) -> None:
    """Tell them all at once."""
    async with asyncio.TaskGroup() as group:
        for story in stories:
            group.create_task(story)


def assert_only_what_is_known(talk: Talk) -> None:
    """A peer of another make gets no attribute of ours."""
    seen = talk.wiretap.attributes
    assert set(seen) <= KNOWN, [f"{attribute:#06x}" for attribute in seen]
    # Controlled, ours checks none of its relayed pairs once a pair of the peer's relay is nominated.
    assert seen[USERNAME] > 3 and talk.wiretap.relayed >= talk.agent.controlling
    assert seen[NOMINATION] == seen[USE_CANDIDATE]
    assert (seen[NOMINATION] > 0) is talk.agent.controlling


def lost_lately(talk: Talk, of: str) -> int:
    """How many got lost in the second before the last half."""
    settled = time.monotonic() - SETTLED_S
    return talk.lost(of, before=settled, since=settled - 1.0)


def lost_since(talk: Talk, of: str, since: float) -> int:
    """How many got lost since then."""
    return talk.lost(of, before=time.monotonic() - SETTLED_S, since=since)


def assert_nothing_lost(talk: Talk, since: float) -> None:
    """Of what was sent since then nothing is missing, and nothing came twice."""
    for of in ("ours", "theirs"):
        assert lost_since(talk, of, since) == 0, f"of {of}\n{talk.story(since)}"
    assert talk.doubled == 0


def assert_told_that_it_does_not_follow(talk: Talk, since: float) -> None:
    """Ours was advised to restart some two seconds after data went elsewhere; once, or once for each relayed pair."""
    told = talk.times_of(RestartAdvised)
    assert told and since + 1.0 <= told[0] <= since + 4.0 and len(told) <= 2, talk.story(since)


def doubts(talk: Talk, since: float) -> int:
    """How often ours doubted a path, whether that is told at the beginning or at the end."""
    return max(len(talk.times_of(kind, since)) for kind in (PathDoubted, PathTrusted))


def are_both(talk: Talk, kind: str) -> bool:
    """Whether both sides send over such a path."""
    return talk.our_path == talk.their_path == kind


async def test_libnice_goes_from_a_relay_to_a_direct_path(natlab: Lab, libnice_program: Path) -> None:
    """A firewall is lifted. The direct pair has the higher priority: libnice obeys, with renomination and without."""

    async def story(name: str, *, renomination: bool) -> None:
        homes = Homes(natlab, name)
        homes.block()
        peer = Libnice(libnice_program, homes.theirs, homes.server, controlling=False, renomination=renomination)
        async with talking(homes, peer) as talk:
            assert are_both(talk, "relay")
            lifted = time.monotonic()
            homes.unblock()
            await talk.until(lambda: are_both(talk, "direct"), UPGRADE_S)
            await asyncio.sleep(SETTLED_S)
            before = talk.counts
            await asyncio.sleep(3.0)
            came = talk.counts - before
            assert came["direct"] > 40 and not came["relay"], talk.story(lifted)
            assert talk.moves(lifted) == ["direct"], talk.story(lifted)
            assert doubts(talk, lifted) <= 1, talk.story(lifted)
            assert_nothing_lost(talk, 0.0)
            assert_only_what_is_known(talk)

    await side_by_side(story("plain", renomination=False), story("renomination", renomination=True))


async def test_aioice_answers_on_a_direct_path_and_stays_on_the_relay(natlab: Lab) -> None:
    """A firewall is lifted. aioice was checking the direct pair when it became connected over the relay: it dropped
    that check, and takes the pair for one that is being checked for ever. So a check of ours is answered and triggers
    none, and our nomination is answered and not obeyed. Ours moves, sees that the peer's data still comes over the
    relay, and goes back after five seconds, for a minute at least; aioice hears what comes over either path.
    """
    homes = Homes(natlab, "upgrade")
    homes.block()
    async with talking(homes, Aioice(homes.theirs, homes.server, controlling=False)) as talk:
        assert are_both(talk, "relay")
        lifted = time.monotonic()
        homes.unblock()
        await talk.until(lambda: talk.moves(lifted) == ["direct"], UPGRADE_S)
        moved = time.monotonic()
        await talk.until(lambda: talk.moves(lifted) == ["direct", "relay"], TIMINGS.follow_others_s + 1.0)
        assert time.monotonic() - moved >= TIMINGS.follow_others_s - 0.5
        await asyncio.sleep(6.0)
        assert talk.moves(lifted) == ["direct", "relay"], talk.story(lifted)
        assert are_both(talk, "relay")
        assert doubts(talk, lifted) <= 2, talk.story(lifted)
        assert not talk.counts["direct"]
        assert_nothing_lost(talk, 0.0)
        assert not talk.times_of(RestartAdvised)
        assert_only_what_is_known(talk)


async def test_aioice_goes_to_a_direct_path_that_it_learns_late(natlab: Lab) -> None:
    """It was told of our relayed candidates only, so the check that reaches it makes a pair that it has not given up:
    it checks that one, and obeys. It opens nothing towards us before, so its NAT has to be one that lets strangers in.
    """
    homes = Homes(natlab, "upgrade", theirs="full-cone")
    homes.block()

    def tells(line: str) -> bool:
        return not line.startswith("a=candidate:") or " typ relay " in line

    async with talking(homes, Aioice(homes.theirs, homes.server, controlling=False), tells=tells) as talk:
        assert are_both(talk, "relay")
        lifted = time.monotonic()
        homes.unblock()
        await talk.until(lambda: are_both(talk, "direct"), UPGRADE_S)
        await asyncio.sleep(3.0)
        assert talk.moves(lifted) == ["direct"], talk.story(lifted)
        assert doubts(talk, lifted) <= 1, talk.story(lifted)
        assert_nothing_lost(talk, 0.0)
        assert_only_what_is_known(talk)


async def test_a_firewall_is_lifted_in_vain_once_their_nat_is_closed(natlab: Lab, libnice_program: Path) -> None:
    """It opens for the checks of the peer, which makes none any more once it is connected. With the firewall on their
    side none ever left; with the one on ours, their NAT has forgotten them after a while. Checks of ours do not get in.
    """

    async def story(make: str, *, at_theirs: bool) -> None:
        homes = Homes(natlab, f"{make}-{'theirs' if at_theirs else 'ours'}", lifetime_s=3)
        homes.block(at_theirs=at_theirs)
        peer: Aioice | Libnice
        if make == "aioice":
            peer = Aioice(homes.theirs, homes.server, controlling=False)
        else:
            peer = Libnice(libnice_program, homes.theirs, homes.server, controlling=False, renomination=True)
        # libnice repeats its checks for some two seconds.
        async with talking(homes, peer, settle_s=1.5 if at_theirs else 5.0) as talk:
            assert are_both(talk, "relay")
            lifted = time.monotonic()
            homes.unblock()
            await asyncio.sleep(5.5)
            assert are_both(talk, "relay")
            assert talk.moves(lifted) == [], talk.story(lifted)
            assert doubts(talk, lifted) == 0, talk.story(lifted)
            assert_nothing_lost(talk, 0.0)
            assert_only_what_is_known(talk)

    await side_by_side(*(story(make, at_theirs=side) for make in ("aioice", "libnice") for side in (False, True)))


async def test_a_peer_that_nominates_once_stays_on_its_relay_in_peace(natlab: Lab, libnice_program: Path) -> None:
    """A firewall is lifted, and ours is controlled. Its checks of the direct path succeed; nobody nominates that."""

    async def story(name: str) -> None:
        homes = Homes(natlab, name)
        homes.block()
        peer: Aioice | Libnice
        if name == "aioice":
            peer = Aioice(homes.theirs, homes.server, controlling=True)
        else:
            peer = Libnice(libnice_program, homes.theirs, homes.server, controlling=True)
        async with talking(homes, peer, controlling=False) as talk:
            assert are_both(talk, "relay")
            lifted = time.monotonic()
            homes.unblock()
            await asyncio.sleep(6.0)
            direct = [pair for pair in talk.agent.pairs() if pair.state == "succeeded" and not pair.selected]
            assert any(pair.remote.type.value == pair.local.type.value == "srflx" for pair in direct)
            assert are_both(talk, "relay")
            assert talk.moves(lifted) == [], talk.story(lifted)
            assert doubts(talk, lifted) == 0, talk.story(lifted)
            assert_nothing_lost(talk, 0.0)
            assert_only_what_is_known(talk)

    await side_by_side(story("aioice"), story("libnice"))


async def test_aioice_goes_from_a_dead_direct_path_to_a_relay_and_back(natlab: Lab) -> None:
    """All these pairs had succeeded before aioice was connected: it obeys every time, also to a lower pair."""
    homes = Homes(natlab, "failover")
    async with talking(homes, Aioice(homes.theirs, homes.server, controlling=False)) as talk:
        assert are_both(talk, "direct")
        began = time.monotonic()
        homes.block()
        await talk.until(lambda: are_both(talk, "relay"), FAILOVER_S)
        moved = time.monotonic()
        await asyncio.sleep(2.5)
        for of in ("ours", "theirs"):
            assert lost_since(talk, of, began) <= FAILOVER_S / INTERVAL_S, talk.story(began)
        assert_nothing_lost(talk, moved + 0.2)
        homes.unblock()
        await talk.until(lambda: are_both(talk, "direct"), RETURN_S)
        await asyncio.sleep(1.0)
        # There are several relayed pairs.
        moves = talk.moves(began)
        assert moves[-1] == "direct" and set(moves[:-1]) == {"relay"} and len(moves) <= 3, talk.story(began)
        assert doubts(talk, began) <= 2, talk.story(began)
        assert_nothing_lost(talk, moved + 0.2)
        assert not talk.times_of(RestartAdvised)
        assert_only_what_is_known(talk)


async def test_libnice_stays_on_a_dead_direct_path_until_that_works_again(natlab: Lab, libnice_program: Path) -> None:
    """The relayed pairs have lower priorities: libnice answers success to their nomination, and goes on sending into
    the dead path. With renomination too, because ours nominates pairs with one end of the dead one. As the controlling
    side it does the same.

    Ours sends over the relay all the time, and is heard. What comes back is lost. Checks are answered, so that ours is
    connected; but data that came until the path died, and none after it, is told: only a restart can help.
    """

    async def story(name: str, *, controlling: bool = False, renomination: bool = False) -> None:
        homes = Homes(natlab, name)
        peer = Libnice(libnice_program, homes.theirs, homes.server, controlling=controlling, renomination=renomination)
        async with talking(homes, peer, controlling=not controlling) as talk:
            assert are_both(talk, "direct")
            began = time.monotonic()
            homes.block()
            await talk.until(lambda: talk.our_path == "relay", FAILOVER_S)
            moved = time.monotonic()
            # A wrong suspicion on each of two relayed pairs.
            await asyncio.sleep(7.0)
            assert talk.our_path == "relay"
            assert talk.their_path == "direct"
            assert lost_since(talk, "ours", moved + 0.2) == 0, talk.story(began)
            assert lost_lately(talk, "theirs") >= 15
            assert not talk.counts["relay"]
            assert doubts(talk, began) <= 4, talk.story(began)
            assert talk.agent.state is AgentState.CONNECTED
            assert not talk.times_of(StateChanged, began), talk.story(began)
            assert_told_that_it_does_not_follow(talk, moved)
            homes.unblock()
            await talk.until(lambda: are_both(talk, "direct"), RETURN_S)
            await asyncio.sleep(2.0)
            moves = talk.moves(began)
            assert moves[-1] == "direct" and set(moves[:-1]) == {"relay"} and len(moves) <= 3, talk.story(began)
            assert doubts(talk, began) <= 5, talk.story(began)
            for of in ("ours", "theirs"):
                assert lost_lately(talk, of) == 0, talk.story(began)
            assert talk.doubled == 0
            assert_only_what_is_known(talk)

    await side_by_side(story("plain"), story("renomination", renomination=True), story("controlling", controlling=True))


async def test_libnice_with_renomination_goes_to_a_relay_where_both_ends_are_others(
    natlab: Lab, libnice_program: Path
) -> None:
    """Where relayed addresses can be reached from relayed ones only, the pair of both relays is what is left: it shares
    no end with the direct pair. libnice obeys with renomination switched on, and stays without.
    """

    async def story(name: str, *, renomination: bool) -> None:
        homes = Homes(natlab, name)
        homes.narrow()
        peer = Libnice(libnice_program, homes.theirs, homes.server, controlling=False, renomination=renomination)
        async with talking(homes, peer) as talk:
            assert are_both(talk, "direct")
            began = time.monotonic()
            homes.block()
            await talk.until(lambda: talk.our_path == "relay", FAILOVER_S)
            await asyncio.sleep(4.0)
            assert talk.moves(began) == ["relay"], talk.story(began)
            assert talk.their_path == ("relay" if renomination else "direct")
            assert lost_lately(talk, "ours") == 0, talk.story(began)
            assert (lost_lately(talk, "theirs") == 0) is renomination, talk.story(began)
            assert doubts(talk, began) <= 3, talk.story(began)
            if renomination:
                assert not talk.times_of(RestartAdvised), talk.story(began)
            else:
                assert_told_that_it_does_not_follow(talk, began)
            assert talk.doubled == 0
            assert_only_what_is_known(talk)

    await side_by_side(story("plain", renomination=False), story("renomination", renomination=True))


async def test_libnice_with_consent_gives_up_on_a_dead_direct_path(natlab: Lab, libnice_program: Path) -> None:
    """It fails some seconds after the path did, although ours is on the relay by then; and goes on answering our checks
    there, so that ours is connected; it is told that data does not come any more.
    """
    homes = Homes(natlab, "consent")
    peer = Libnice(libnice_program, homes.theirs, homes.server, controlling=False, consent=True)
    async with talking(homes, peer) as talk:
        assert are_both(talk, "direct")
        began = time.monotonic()
        homes.block()
        await peer.process.wait_state("failed", 15.0)
        assert talk.our_path == "relay"
        assert talk.agent.state is AgentState.CONNECTED, talk.story(began)
        assert_told_that_it_does_not_follow(talk, began)
        assert doubts(talk, began) <= 4, talk.story(began)
        assert_only_what_is_known(talk)


async def test_with_aioice_controlling_only_a_restart_replaces_a_dead_direct_path(natlab: Lab) -> None:
    """aioice deletes the pairs that it has not checked when it nominates: no relayed one ever works afterwards. Ours
    says so, and goes on where it was when the path works again.
    """
    homes = Homes(natlab, "failover")
    peer = Aioice(homes.theirs, homes.server, controlling=True)
    async with talking(homes, peer, controlling=False) as talk:
        assert are_both(talk, "direct")
        began = time.monotonic()
        homes.block()
        await talk.until(lambda: bool(talk.times_of(RestartAdvised)), 2.5)
        assert talk.agent.state is AgentState.DISCONNECTED
        await asyncio.sleep(2.0)
        homes.unblock()
        await talk.until(lambda: talk.agent.state is AgentState.CONNECTED, 1.5)
        await asyncio.sleep(2.0)
        assert talk.moves(began) == [], talk.story(began)
        assert len(talk.times_of(RestartAdvised)) == 1
        for of in ("ours", "theirs"):
            assert lost_lately(talk, of) == 0, talk.story(began)
        assert talk.doubled == 0
        assert_only_what_is_known(talk)
