"""Where a model comes from: a folder here or a repository of the Hub, told apart before anything is loaded."""

import difflib
import functools
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP client, whichever huggingface_hub has
ASK_SECONDS = 5.0
FILE_SUFFIXES = {".bin", ".csv", ".gz", ".json", ".jsonl", ".npy", ".npz", ".onnx", ".parquet", ".pkl", ".pt", ".pth"}
FILE_SUFFIXES |= {".safetensors", ".tar", ".tsv", ".txt", ".xz", ".yaml", ".yml", ".zip"}


def check_source(name: Any, argument: str, repo_type: str = "model") -> str:
    """Make sure that something is there to load: refuse a mistyped path at once, ask the Hub once and briefly.

    A name is a path if it begins with `.`, `/` or `~`, has more than one slash or the suffix of a file, or lies in a
    folder that exists here. Any other is the id of a Hub repository.

    Args:
        name: a path, or a Hub id.
        argument: how to call it in an error.
        repo_type: `model` or `dataset`.

    Returns:
        The name, as a string.

    Raises:
        ValueError: if there is neither such a path nor, as far as the Hub answers, such a repository; if a model is
            to be read from a single file.
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise ValueError(f"`{argument}` must be the folder or the Hub id of a {repo_type}, got {name!r}; name one.")
    source = os.fspath(name)
    path = Path(source)
    if repo_type == "model" and path.is_file():
        raise ValueError(f"`{argument}` must be a folder, got the file {source!r}; name the folder that holds it.")
    if path.exists():
        return source
    if not isinstance(name, str) or is_path(source):
        raise _refusal(argument, source, repo_type, "no such folder is here")
    if not is_offline_mode():
        _ask(source, argument, repo_type)
    return source


def is_path(source: str) -> bool:
    """Whether a name can only be that of a file or folder."""
    path = Path(source)
    deep = source.replace("\\", "/").count("/") > 1 or path.suffix.lower() in FILE_SUFFIXES
    beside = path.parent != Path() and path.parent.is_dir()
    return source.startswith((".", "/", "~")) or deep or beside


@functools.cache  # one model is asked for by several functions; what was refused is asked for again
def _ask(source: str, argument: str, repo_type: str) -> None:
    files = ("config.json", "tokenizer_config.json", "modules.json", "README.md")
    try:
        if any(isinstance(try_to_load_from_cache(source, file, repo_type=repo_type), str) for file in files):
            return
        HfApi().repo_info(source, repo_type=repo_type, timeout=ASK_SECONDS)
    except GatedRepoError:  # it is there, and loading says how to get access
        return
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _refusal(
            argument, source, repo_type, "no such folder is here, and the Hub has no such repository"
        ) from error
    except (HTTP_ERROR, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].strip()
        reason = f"no such folder is here, and the Hub does not answer ({reason})"
        raise _refusal(argument, source, repo_type, reason) from error


def _refusal(argument: str, source: str, repo_type: str, reason: str) -> ValueError:
    rule = f"must be the folder or the Hub id of a {repo_type}"
    return ValueError(f"`{argument}` {rule}, got {source!r}: {reason}; {advise(source)}.")


def advise(source: str) -> str:
    """What to do: the names nearest to the first part of the path that does not exist, where there are some."""
    if source.startswith("~"):
        return "write the path without ~"
    path = Path(source)
    while path.parent != path and not path.parent.is_dir():
        path = path.parent
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:  # a folder that may not be listed
        names = []
    near = [repr(str(path.parent / found)) for found in difflib.get_close_matches(path.name, names)]
    question = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{question}check the path, or the id and the network"
