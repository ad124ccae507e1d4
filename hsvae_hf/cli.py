"""What every script shares: one clear line for bad input."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hsvae_hf.reporting import prepare_output

# A script's folder is no place to import from: there, evaluate.py would hide the package of that name.
_FOLDER = Path(sys.argv[0]).resolve().parent
if (_FOLDER / "evaluate.py").is_file():
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != _FOLDER]


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; input that it cannot work with ends in one line on stderr and exit code 2."""
    prepare_output()
    torch.set_flush_denormal(True)  # denormals make CPU kernels many times slower
    try:
        main()
    except (ValueError, OSError, ImportError, DatasetsError, StrictDataclassError, SafetensorError) as error:
        message = " ".join(str(error).rpartition("ValueError: ")[2].split())  # a configuration's error wraps its cause
        print(f"error: {message or type(error).__name__}", file=sys.stderr)
        raise SystemExit(2) from error
