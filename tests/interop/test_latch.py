"""Does an ICE agent of another make latch at a relay that it takes for its peer?

Ours and aioice do in ``tests/loopback/test_latch.py``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from iceagent.net.local import LocalHost
from relay.latch.channel import Channel, Side, SideKey
from relay.latch.relay import LatchRelay
from tests.interop.libnice import END_OF_CANDIDATES, LibnicePeer

LOOPBACK = "127.0.0.1"
# Libnice keeps a path with a packet every ten seconds or so.
A_WHILE_S = 12.0


def described(side: Side, key: SideKey | None) -> list[str]:
    """A peer whose only candidate is the relay's port."""
    assert key is not None
    return [
        f"a=ice-ufrag:{key.username}",
        f"a=ice-pwd:{key.password}",
        f"a=candidate:1 1 UDP 2130706431 {LOOPBACK} {side.port} typ host",
        END_OF_CANDIDATES,
    ]


async def introduce(peer: LibnicePeer, side: Side, key: SideKey | None) -> None:
    await peer.local_lines()
    await peer.add_remote(described(side, key))


async def test_two_libnice_agents_talk_through_a_channel_with_random_keys(libnice_program: Path) -> None:
    """RFC 8445, 5.3 and 7.2.2: the keys are what it takes for a fragment and a password. Its keepalives are Binding
    indications, and no business of the relay's.
    """
    async with (
        LatchRelay(LocalHost(), backend="userspace", bind=[LOOPBACK]) as relay,
        await LibnicePeer.start(libnice_program, controlling=True) as left,
        await LibnicePeer.start(libnice_program, controlling=True) as right,
    ):
        channel: Channel = relay.open()
        await introduce(left, channel.left, channel.options.left)
        await introduce(right, channel.right, channel.options.right)
        await asyncio.gather(left.wait_state("ready"), right.wait_state("ready"))
        for pause_s in (A_WHILE_S, 0.0):
            for sender, receiver in ((left, right), (right, left)):
                await sender.send(b"\x80 through the relay")
                assert await receiver.recv() == b"\x80 through the relay"
            await asyncio.sleep(pause_s)
        assert relay.counters["latches"] == 2 and relay.counters["moves"] == 0
        assert not any(name.startswith("errors") for name in relay.counters)
