"""Names of arguments in errors: a function knows its own, the caller those that the user wrote."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError

from hsvae_hf.models.configuration_text_vae import refusal

_BEGIN = re.compile(r"`(\w+)` must (?!hold a string in every row)")  # those that are about the column of a file


@contextmanager
def known_as(**names: str) -> Iterator[None]:
    """Let errors of what is called here begin with the name that the user knows, such as the option of a script.

    Args:
        names: by the argument of what is called, what the user calls it.

    Raises:
        ValueError: in place of one that begins with an argument of `names`.

    >>> from hsvae_hf.input_checks import check_positive
    >>> with known_as(batch_size="per_device_eval_batch_size"):
    ...     check_positive(batch_size=0)
    Traceback (most recent call last):
    ValueError: `per_device_eval_batch_size` must be at least 1, a whole number, got 0; choose a positive one.
    """
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        line = refusal(error) if isinstance(error, StrictDataclassError) else str(error)
        begin = _BEGIN.match(line)
        if begin is None or begin[1] not in names:
            raise
        raise ValueError(f"`{names[begin[1]]}`{line[begin.end(1) + 1 :]}") from error
