"""How fast is our STUN codec, next to aioice's?

One connectivity check as both ends see it, in four steps: build the request (USERNAME, PRIORITY, ICE-CONTROLLING,
USE-CANDIDATE, MESSAGE-INTEGRITY, FINGERPRINT), parse and verify it, build the success response (XOR-MAPPED-ADDRESS,
MESSAGE-INTEGRITY, FINGERPRINT), parse and verify that. Both codecs do all of it, in turns within one run, and the
medians of the rounds are compared, since the machine's speed changes from one minute to the next. The bytes are
compared first: both codecs must write the same request and the same response.

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

from aioice import stun as aioice_stun

from iceagent.net.address import TransportAddress
from relay import stun

TARGET = 5.0
"""At least this many times aioice's speed, over the four steps."""

USERNAME = "evtj:h6vY"
PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"
PRIORITY = 1845494271
TIE_BREAKER = 0x932FF9B151263B36
SOURCE = TransportAddress("203.0.113.77", 54321)

Step = Callable[[bytes], Any]


class Ours:
    """The four steps with relay.stun; the key is absorbed once, as an agent keeps it per password."""

    def __init__(self) -> None:
        self.key = stun.short_term_key(PASSWORD)

    def build_request(self, transaction_id: bytes) -> bytes:
        request = stun.build(
            stun.Method.BINDING,
            stun.MessageClass.REQUEST,
            transaction_id,
            (stun.USERNAME, USERNAME),
            (stun.PRIORITY, PRIORITY),
            (stun.ICE_CONTROLLING, TIE_BREAKER),
            (stun.USE_CANDIDATE, True),
        )
        return request.encode(self.key)

    def build_response(self, transaction_id: bytes) -> bytes:
        response = stun.build(
            stun.Method.BINDING, stun.MessageClass.SUCCESS, transaction_id, (stun.XOR_MAPPED_ADDRESS, SOURCE)
        )
        return response.encode(self.key)

    def parse(self, data: bytes) -> stun.Message:
        message = stun.parse(data)
        if not message.verify(self.key):
            raise SystemExit("our own message does not verify")
        return message


class Aioice:
    """The four steps with aioice.stun, as its agent makes them."""

    def __init__(self) -> None:
        self.key = PASSWORD.encode()

    def build_request(self, transaction_id: bytes) -> bytes:
        request = aioice_stun.Message(
            message_method=aioice_stun.Method.BINDING,
            message_class=aioice_stun.Class.REQUEST,
            transaction_id=transaction_id,
        )
        request.attributes["USERNAME"] = USERNAME
        request.attributes["PRIORITY"] = PRIORITY
        request.attributes["ICE-CONTROLLING"] = TIE_BREAKER
        request.attributes["USE-CANDIDATE"] = None
        request.add_message_integrity(self.key)
        return bytes(request)

    def build_response(self, transaction_id: bytes) -> bytes:
        response = aioice_stun.Message(
            message_method=aioice_stun.Method.BINDING,
            message_class=aioice_stun.Class.RESPONSE,
            transaction_id=transaction_id,
        )
        response.attributes["XOR-MAPPED-ADDRESS"] = SOURCE
        response.add_message_integrity(self.key)
        return bytes(response)

    def parse(self, data: bytes) -> aioice_stun.Message:
        message = aioice_stun.parse_message(data)
        if not message.check_message_integrity(self.key):
            raise SystemExit("aioice's own message does not verify")
        return message


def main() -> int:
    """Run the benchmark and print its result; 0 if the target is met, else 1."""
    options = _options()
    ours, theirs = Ours(), Aioice()
    _check_agreement(ours, theirs)
    samples: dict[str, dict[str, list[float]]] = {"ours": {}, "aioice": {}}
    for _ in range(options.rounds):
        for name, codec in (("ours", ours), ("aioice", theirs)):
            for step, microseconds in _round(codec, options.count).items():
                samples[name].setdefault(step, []).append(microseconds)
    result = _result(samples)
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


def _round(codec: Ours | Aioice, count: int) -> dict[str, float]:
    # An id of its own for each message, as on the wire: nothing can be remembered from one to the next.
    ids = [number.to_bytes(12, "big") for number in range(count)]
    requests = [codec.build_request(transaction_id) for transaction_id in ids]
    responses = [codec.build_response(transaction_id) for transaction_id in ids]
    return {
        "build request": _time(codec.build_request, ids),
        "parse and verify request": _time(codec.parse, requests),
        "build response": _time(codec.build_response, ids),
        "parse and verify response": _time(codec.parse, responses),
    }


def _time(step: Step, inputs: list[bytes]) -> float:
    started = time.perf_counter()
    for data in inputs:
        step(data)
    return (time.perf_counter() - started) / len(inputs) * 1e6


def _result(samples: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    medians = {name: {step: statistics.median(each) for step, each in steps.items()} for name, steps in samples.items()}
    sums = {name: [sum(values) for values in zip(*steps.values(), strict=True)] for name, steps in samples.items()}
    for name, values in sums.items():
        medians[name]["all four"] = statistics.median(values)
    ratios = {step: medians["aioice"][step] / value for step, value in medians["ours"].items()}
    return {"microseconds": medians, "ratios": ratios, "ratio": ratios["all four"], "target": TARGET}


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
