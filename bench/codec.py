"""How fast is our STUN codec, next to aioice's?

One connectivity check as both ends see it, in four steps: build the request (USERNAME, PRIORITY, ICE-CONTROLLING,
USE-CANDIDATE, MESSAGE-INTEGRITY, FINGERPRINT), parse and verify it, build the success response (XOR-MAPPED-ADDRESS,
MESSAGE-INTEGRITY, FINGERPRINT), parse and verify that. Both codecs do all of it, in short turns, since a
machine's speed changes from one moment to the next; the ratio is the median of the rounds' ratios. The bytes are
compared first: both codecs must write the same request and the same response.

Each message has a transaction id of its own, and so other integrity and fingerprint; the attributes repeat, as those of
an agent do, which our codec makes use of (``relay/stun/layout.py``).

    python bench/codec.py [--json] [--rounds 7] [--count 2000]

Exits with 1 if the ratio of the sums is below the target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aioice.stun import Class as AioiceClass
from aioice.stun import Message as AioiceMessage
from aioice.stun import Method as AioiceMethod
from aioice.stun import parse_message

from iceagent.net.address import TransportAddress
from relay.stun import (
    ICE_CONTROLLING,
    PRIORITY,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Message,
    MessageClass,
    Method,
    build,
    parse,
    short_term_key,
)

TARGET = 5.0
"""At least this many times aioice's speed, over the four steps."""

BATCH = 50
"""Messages that one codec handles before the other does the same ones."""

USER = "evtj:h6vY"
PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"
CHECK_PRIORITY = 1845494271
TIE_BREAKER = 0x932FF9B151263B36
SOURCE = TransportAddress("203.0.113.77", 54321)

# Members of enumerations are looked up once, for both: it is the codecs that are measured.
BINDING, REQUEST, SUCCESS = Method.BINDING, MessageClass.REQUEST, MessageClass.SUCCESS
AIOICE_BINDING, AIOICE_REQUEST, AIOICE_RESPONSE = AioiceMethod.BINDING, AioiceClass.REQUEST, AioiceClass.RESPONSE

Step = Callable[[bytes], Any]


class Ours:
    """The four steps with relay.stun; the key is absorbed once, as an agent keeps it per password."""

    def __init__(self) -> None:
        self.key = short_term_key(PASSWORD)

    def build_request(self, transaction_id: bytes) -> bytes:
        request = build(
            BINDING,
            REQUEST,
            transaction_id,
            (USERNAME, USER),
            (PRIORITY, CHECK_PRIORITY),
            (ICE_CONTROLLING, TIE_BREAKER),
            (USE_CANDIDATE, True),
        )
        return request.encode(self.key)

    def build_response(self, transaction_id: bytes) -> bytes:
        response = build(BINDING, SUCCESS, transaction_id, (XOR_MAPPED_ADDRESS, SOURCE))
        return response.encode(self.key)

    def parse(self, data: bytes) -> Message:
        message = parse(data)
        if not message.verify(self.key):
            raise SystemExit("our own message does not verify")
        return message


class Aioice:
    """The four steps with aioice.stun, as its agent makes them."""

    def __init__(self) -> None:
        self.key = PASSWORD.encode()

    def build_request(self, transaction_id: bytes) -> bytes:
        request = AioiceMessage(
            message_method=AIOICE_BINDING,
            message_class=AIOICE_REQUEST,
            transaction_id=transaction_id,
        )
        request.attributes["USERNAME"] = USER
        request.attributes["PRIORITY"] = CHECK_PRIORITY
        request.attributes["ICE-CONTROLLING"] = TIE_BREAKER
        request.attributes["USE-CANDIDATE"] = None
        request.add_message_integrity(self.key)
        return bytes(request)

    def build_response(self, transaction_id: bytes) -> bytes:
        response = AioiceMessage(
            message_method=AIOICE_BINDING,
            message_class=AIOICE_RESPONSE,
            transaction_id=transaction_id,
        )
        response.attributes["XOR-MAPPED-ADDRESS"] = SOURCE
        response.add_message_integrity(self.key)
        return bytes(response)

    def parse(self, data: bytes) -> AioiceMessage:
        message = parse_message(data)
        if not message.check_message_integrity(self.key):
            raise SystemExit("aioice's own message does not verify")
        return message


def main() -> int:
    """Run the benchmark and print its result; 0 if the target is met, else 1."""
    options = _options()
    ours, theirs = Ours(), Aioice()
    _check_agreement(ours, theirs)
    rounds = [_round(ours, theirs, options.count) for _ in range(options.rounds)]
    result = _result(rounds)
    _report(result, options)
    return 0 if result["ratio"] >= TARGET else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="STUN codec: ours and aioice's in one run.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--count", type=int, default=2000, help="messages per step and round (default: 2000)")
    return parser.parse_args()


def _check_agreement(ours: Ours, theirs: Aioice) -> None:
    transaction_id = bytes(range(12))
    if ours.build_request(transaction_id) != theirs.build_request(transaction_id):
        raise SystemExit("the two codecs write different requests")
    if ours.build_response(transaction_id) != theirs.build_response(transaction_id):
        raise SystemExit("the two codecs write different responses")


def _round(ours: Ours, theirs: Aioice, count: int) -> dict[str, tuple[float, float]]:
    ids = [number.to_bytes(12, "big") for number in range(count)]
    requests = [ours.build_request(transaction_id) for transaction_id in ids]
    responses = [ours.build_response(transaction_id) for transaction_id in ids]
    return {
        "build request": _compare(ours.build_request, theirs.build_request, ids),
        "parse and verify request": _compare(ours.parse, theirs.parse, requests),
        "build response": _compare(ours.build_response, theirs.build_response, ids),
        "parse and verify response": _compare(ours.parse, theirs.parse, responses),
    }


def _compare(ours: Step, theirs: Step, inputs: list[bytes]) -> tuple[float, float]:
    # Microseconds per message. In small turns: a machine's clock may halve within a round.
    spent = [0.0, 0.0]
    for start in range(0, len(inputs), BATCH):
        turn = inputs[start : start + BATCH]
        for index, step in enumerate((ours, theirs)):
            started = time.perf_counter()
            for data in turn:
                step(data)
            spent[index] += time.perf_counter() - started
    return spent[0] / len(inputs) * 1e6, spent[1] / len(inputs) * 1e6


def _result(rounds: list[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    for each in rounds:
        each["all four"] = (sum(ours for ours, _ in each.values()), sum(theirs for _, theirs in each.values()))
    microseconds = {
        name: {step: statistics.median(each[step][index] for each in rounds) for step in rounds[0]}
        for index, name in enumerate(("ours", "aioice"))
    }
    ratios = {step: statistics.median(each[step][1] / each[step][0] for each in rounds) for step in rounds[0]}
    return {"microseconds": microseconds, "ratios": ratios, "ratio": ratios["all four"], "target": TARGET}


def _report(result: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'microseconds, median of ' + str(options.rounds) + ' rounds':<36}{'ours':>8}{'aioice':>8}{'ratio':>8}")
    for step, ratio in result["ratios"].items():
        ours, theirs = (result["microseconds"][name][step] for name in ("ours", "aioice"))
        print(f"{step:<36}{ours:>8.2f}{theirs:>8.2f}{ratio:>7.1f}x")
    print(f"target {TARGET}x: {'met' if result['ratio'] >= TARGET else 'MISSED'}")


if __name__ == "__main__":
    sys.exit(main())
