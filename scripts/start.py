"""Signal handling while a script imports: imports take seconds, and a signal then ends them without a traceback.

A script imports this file first. `hsvae_hf.cli.run` takes over once the imports are done.
"""

import signal
import sys
from pathlib import Path

if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:  # a script is run, not imported
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
