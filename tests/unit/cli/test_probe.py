"""A report as ``iceagent probe`` shows it: names in it come from elsewhere, and a terminal does not obey them."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest

from iceagent.cli.output import Output
from iceagent.cli.probe import _Prober
from iceagent.config import Config
from iceagent.probe.measure import ProbeOptions
from iceagent.probe.report import InterfaceRow
from tests.unit.probe.samples import GOOD

HOSTILE = "\x1b[2J\x9b\u202e"


class Stream(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(("is_terminal", "as_json"), [(True, False), (False, False), (False, True)])
def test_an_interface_does_not_speak_to_the_terminal(is_terminal: bool, as_json: bool) -> None:
    """Whoever may make an interface chooses its name."""
    stream = Stream(is_terminal=is_terminal)
    row = InterfaceRow(name=HOSTILE, addresses=(), mtu=1500, kind="ethernet")
    prober = _Prober(Output(stream=stream, as_json=as_json), ProbeOptions(config=Config()), random.Random(1))
    prober._show(replace(GOOD, interfaces=(row,)))
    shown = stream.getvalue()
    assert not any(each in shown for each in ("\x1b[2J", "\x9b", "\u202e"))
    assert (r"\u001b[2J\u009b\u202e" if as_json else r"\x1b[2J\x9b\u202e") in shown
