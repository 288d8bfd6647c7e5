"""What the interoperability tests need from outside: agents of other makes, compiled once per run.

A part that is missing fails the tests that need it. It never skips them: a run that promises these tests must not pass
without them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.libnice import MissingPart, compile_peer


@pytest.fixture(scope="session")
def libnice_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled libnice peer, for :meth:`tests.interop.libnice.LibnicePeer.start`."""
    try:
        return compile_peer(tmp_path_factory.mktemp("libnice"))
    except MissingPart as error:
        pytest.fail(str(error), pytrace=False)
