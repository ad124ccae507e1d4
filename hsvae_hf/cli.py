"""What every script shares: one clear line for bad input."""

import sys
from collections.abc import Callable

import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; input that it cannot work with ends in one line on stderr and exit code 2."""
    torch.set_flush_denormal(True)  # denormals make CPU kernels many times slower
    try:
        main()
    except (ValueError, OSError, DatasetsError, StrictDataclassError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message or type(error).__name__}", file=sys.stderr)
        raise SystemExit(2) from error
