"""The Python of docs/webrtc.md runs as it stands there: in a laboratory, where its servers are a machine."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCDataChannel, RTCIceServer, RTCSessionDescription

from iceagent.lab import Lab, Machine
from iceagent.lab.services import serve
from iceagent.rtc import PeerConnection, candidate_from_json, candidate_to_json

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "webrtc.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
# What each of them is told by, in their order.
PROGRAM, OPTIONS, RELAY, ERRORS = "CONFIGURATION", "portmap=True,", "RTCIceTransportPolicy", "IceCandidateError"
ANSWER, RESTART, ORTC = "json.loads", "restartIce", "End"
PATIENCE_S = 30.0
# SCTP repeats what was lost after 1, 2, 4, 8 and 16 s.
LONG_PATIENCE_S = 45.0


def block(word: str) -> str:
    """The one with this word."""
    found: list[str] = [text for text in BLOCKS if word in text]
    assert len(found) == 1, word
    return found[0]


def run(machine: Machine, text: str) -> list[str]:
    """The lines that it prints; nothing on stderr, and exit code 0."""
    command = [sys.executable, "-W", "error", "-c", text]
    process = machine.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, ""), err
    lines: list[str] = out.splitlines()
    return lines


def names(text: str) -> dict[str, Any]:
    """What a block defines."""
    found: dict[str, Any] = {}
    exec(text, found)
    return found


def test_these_are_all_blocks() -> None:
    assert [block(word) for word in (PROGRAM, OPTIONS, RELAY, ERRORS, ANSWER, RESTART, ORTC)] == BLOCKS


def test_the_whole_program(natlab: Lab) -> None:
    server = natlab.machine("server")
    serve(server, "--user", "alice:secret")
    for name in ("stun.example.org", "turn.example.org"):
        natlab.names[name] = server.hosts
    machine = natlab.machine()
    natlab.tell_names(machine)
    said, path = run(machine, block(PROGRAM))
    assert said == "you said hello"
    kind, local, _, remote = path.split()
    assert kind == "direct"
    assert any(host in local for host in machine.hosts) and any(host in remote for host in machine.hosts)


def test_the_change_makes_the_program_of_before_the_one_of_after(natlab: Lab) -> None:
    """Either runs, but for connecting; aiortc's own only where no server of others is named."""
    (change,) = re.findall(r"^```diff\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    lines = change.splitlines()
    for sign, name in (("-", "RTCPeerConnection"), ("+", "PeerConnection")):
        program = "\n".join(line[1:] for line in lines if not line or line[0] in (sign, " "))
        assert run(natlab.machine(), f"{program}\nprint(type(connection).__name__)") == [name]


def test_options(natlab: Lab) -> None:
    assert run(natlab.machine(), block(OPTIONS)) == []


def test_nothing_but_relays_with_an_account_that_a_function_gives(natlab: Lab) -> None:
    server = natlab.machine("server")
    serve(server, "--user", "alice:secret")
    natlab.names["turn.example.org"] = server.hosts
    machine = natlab.machine()
    natlab.tell_names(machine)
    more = """
import asyncio


async def main() -> None:
    connection.createDataChannel("chat")
    await connection.setLocalDescription(await connection.createOffer())
    lines = [line for line in connection.localDescription.sdp.splitlines() if line.startswith("a=candidate:")]
    print(*{line.split()[7] for line in lines})
    await connection.close()


asyncio.run(main())
"""
    assert run(machine, block(RELAY) + more) == ["relay"]


async def test_a_relay_that_refuses_says_why(natlab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    complain: Callable[..., None] = names(block(ERRORS))["complain"]
    server, machine = natlab.machine("server"), natlab.machine()
    serve(server, "--user", "alice:secret")
    url = f"turn:{server.address}"
    wrong = RTCIceServer(urls=url, username="alice", credential="another")
    connection = PeerConnection(RTCConfiguration(iceServers=[wrong]), host=machine.host)
    complain(connection)
    connection.createDataChannel("chat")
    await connection.setLocalDescription(await connection.createOffer())
    await connection.close()
    words = [line.split()[:2] for line in capsys.readouterr().err.splitlines()]
    assert words and all(word == [url, "401"] for word in words)


def test_in_the_style_of_ortc(natlab: Lab) -> None:
    ((said, state),) = [line.split() for line in run(natlab.machine(), block(ORTC))]
    assert said == "hello" and state in ("connected", "completed")


async def test_a_connection_whose_paths_have_died_is_restarted_however_many_offers_are_lost(natlab: Lab) -> None:
    """The halves of "Signalling with browsers" and "Restart", each at one end. The first offers are lost; the one that
    arrives comes twice, and so does its answer.
    """
    answer: Callable[..., Any] = names(block(ANSWER))["answer"]
    restart = names(block(RESTART))
    here, there = natlab.machine(), natlab.machine()
    a, b = (PeerConnection(host=machine.host) for machine in (here, there))
    to_a: asyncio.Queue[str] = asyncio.Queue()
    to_b: asyncio.Queue[str] = asyncio.Queue()
    taken: asyncio.Queue[tuple[RTCSessionDescription, str]] = asyncio.Queue()
    states: asyncio.Queue[str] = asyncio.Queue()
    heard: asyncio.Queue[str] = asyncio.Queue()
    to_lose = 2
    lost: list[RTCSessionDescription] = []

    def signal(description: RTCSessionDescription) -> None:
        if len(lost) < to_lose:
            lost.append(description)
        else:
            for _ in range(2):
                tell(description)

    def tell(description: RTCSessionDescription) -> None:
        to_b.put_nowait(json.dumps({"type": description.type, "sdp": description.sdp}))

    async def hear() -> None:
        async for text in texts(to_a):
            message = json.loads(text)
            if "candidate" in message:
                await a.addIceCandidate(candidate_from_json(message["candidate"]))
            else:
                theirs, before = RTCSessionDescription(**message), a.signalingState
                await restart["take_answer"](a, theirs)
                taken.put_nowait((theirs, before))

    a.on("icecandidate", lambda found: to_b.put_nowait(json.dumps({"candidate": candidate_to_json(found)})))
    a.on("iceconnectionstatechange", lambda: states.put_nowait(a.iceConnectionState))
    restart["restart_when_needed"](a, signal)
    b.on("datachannel", lambda channel: channel.on("message", heard.put_nowait))
    channel: RTCDataChannel = a.createDataChannel("chat")
    channel.on("open", lambda: channel.send("before"))
    halves = [asyncio.ensure_future(half) for half in (answer(b, to_a.put_nowait, texts(to_b)), hear())]
    try:
        async with asyncio.timeout(LONG_PATIENCE_S):
            await a.setLocalDescription(await a.createOffer())
            tell(a.localDescription)
            assert await heard.get() == "before"
            first, _ = await taken.get()
            there.set_link(is_up=False)
            channel.send("meanwhile")
            while await states.get() != "disconnected":
                pass
            (second, before), (again, afterwards) = await taken.get(), await taken.get()
            assert (before, afterwards) == ("have-local-offer", "stable")
            assert ufrags(first).isdisjoint(ufrags(second)) and ufrags(second) == ufrags(again)
            # The same offer, until it was answered.
            assert len({frozenset(ufrags(offer)) for offer in (*lost, a.localDescription)}) == 1
            there.set_link(is_up=True)
            while await states.get() != "connected":
                pass
            assert await heard.get() == "meanwhile"
    finally:
        for half in halves:
            half.cancel()
        ends = await asyncio.gather(*halves, return_exceptions=True)
        await asyncio.gather(a.close(), b.close())
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


def ufrags(description: RTCSessionDescription) -> set[str]:
    found = re.findall("^a=ice-ufrag:(.*?)\r?$", description.sdp, re.MULTILINE)
    assert found
    return set(found)


async def texts(queue: asyncio.Queue[str]) -> AsyncIterator[str]:
    while True:
        yield await queue.get()
