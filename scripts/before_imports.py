"""What must happen before the heavy imports of a script, which take seconds: signals and threads.

A signal ends the imports without a traceback; `hsvae_hf.cli.run` takes over once they are done. Idle threads of torch
sleep instead of spinning: where other programs use the cores too, spinning makes training several times slower.
"""

import os
import signal
import sys
from pathlib import Path

_main = getattr(sys.modules["__main__"], "__file__", None)
if _main is not None and Path(__file__).resolve().parent in Path(_main).resolve().parents:  # a script runs, not a test
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, frame: sys.exit(128 + number))
