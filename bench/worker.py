"""The main program of a measuring process: runs one coroutine function and writes what it returns as a line of JSON.

``python -m bench.worker MODULE:FUNCTION ARGUMENTS``; see ``processes.py``.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys

__all__ = ["main"]


def main() -> None:
    """Run the function that the command line names."""
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    result = asyncio.run(function(**json.loads(sys.argv[2])))
    if result is not None:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
