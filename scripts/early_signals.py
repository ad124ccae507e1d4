"""Quiet end of a script that a signal stops while it imports, which takes seconds.

A script imports this module first. Its `main` runs under `hsvae_hf.cli.run`, which handles signals from then on.
"""

import signal
import sys
from pathlib import Path

_main = getattr(sys.modules["__main__"], "__file__", None)
if _main is not None and Path(__file__).resolve().parent in Path(_main).resolve().parents:  # a script runs, not a test
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, frame: sys.exit(128 + number))
