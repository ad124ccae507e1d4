"""Where a model or a data set is: a path here or a repository of the Hub, told apart before anything is loaded."""

import difflib
import functools
import os
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP client, whichever huggingface_hub has
ASK_SECONDS = 5.0
FILE_SUFFIXES = {".bin", ".csv", ".gz", ".json", ".jsonl", ".npy", ".npz", ".onnx", ".parquet", ".pkl", ".pt", ".pth"}
FILE_SUFFIXES |= {".safetensors", ".tar", ".tsv", ".txt", ".xz", ".yaml", ".yml", ".zip"}
MODEL = "the folder or the Hub id of a model"


class HubSilentError(ValueError):
    """The Hub does not answer. What was downloaded earlier may still load."""


def check_source(name: object, argument: str, repo_type: str = "model", rule: str = MODEL) -> str:
    """Make sure that there is something to load. A mistyped path is refused at once; the Hub is asked once, briefly.

    Args:
        name: a path, or the id of a Hub repository; see `is_path`.
        argument: the name to use in an error.
        repo_type: `model` or `dataset`. A data set may be a single file.
        rule: what the argument must be, for an error.

    Returns:
        The name, as a string.

    Raises:
        HubSilentError: if there is no such path, and the Hub does not answer.
        ValueError: if there is neither such a path nor such a repository, or if a model is a single file.

    >>> check_source("./nowhere", "model_name_or_path")
    Traceback (most recent call last):
    ValueError: `model_name_or_path` must be the folder or the Hub id of a model, got './nowhere': ...
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise ValueError(f"`{argument}` must be {rule}, got {name!r}; name one.")
    source = os.fspath(name)
    if repo_type == "model" and Path(source).is_file():
        raise ValueError(f"`{argument}` must be a folder, got the file {source!r}; name the folder that holds it.")
    if Path(source).exists():
        return source
    kind = "folder" if repo_type == "model" else "file or folder"
    problem = f"`{argument}` must be {rule}, got {source!r}: no such {kind} is here"
    if not isinstance(name, str) or is_path(source):
        raise ValueError(f"{problem}; {advise(source)}.")
    if is_offline_mode():  # what was downloaded earlier is found by loading
        return source
    try:
        _ask_hub(source, repo_type)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"{problem}, and the Hub has no such repository; {advise(source)}.") from error
    except (HTTP_ERROR, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].strip()
        raise HubSilentError(f"{problem}, and the Hub does not answer ({reason}); {advise(source)}.") from error
    return source


def is_path(source: str) -> bool:
    """Whether a name can only be that of a file or folder.

    A path begins with `.`, `/` or `~`, has more than one slash or the suffix of a file, or lies in a folder that
    exists here.

    >>> [is_path(name) for name in ("bert-base-uncased", "me/model", "./model", "data.csv")]
    [False, False, True, True]
    """
    path = Path(source)
    deep = source.replace("\\", "/").count("/") > 1 or path.suffix.lower() in FILE_SUFFIXES
    beside = path.parent != Path() and path.parent.is_dir()
    return source.startswith((".", "/", "~")) or deep or beside


@functools.cache  # several functions ask for one model; a refused name is asked for again
def _ask_hub(source: str, repo_type: str) -> None:
    files = ("config.json", "tokenizer_config.json", "modules.json")
    if repo_type == "model" and any(isinstance(try_to_load_from_cache(source, file), str) for file in files):
        return
    try:
        HfApi().repo_info(source, repo_type=repo_type, timeout=ASK_SECONDS)
    except GatedRepoError:  # it exists, and loading says how to get access
        return


def advise(source: str) -> str:
    """What to do about a path that does not exist: the nearest names, where there are some."""
    if source.startswith("~"):
        return "write the path without ~"
    path = Path(source)
    while path.parent != path and not path.parent.is_dir():
        path = path.parent
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:  # a folder that may not be listed
        names = []
    near = [repr(str(path.parent / name)) for name in difflib.get_close_matches(path.name, names)]
    question = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{question}check the path, or the id and the network"
