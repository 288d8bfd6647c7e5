"""``python -m iceagent`` is the command ``iceagent``."""

from __future__ import annotations

import sys

from iceagent.cli import main

if __name__ == "__main__":
    sys.exit(main())
