"""Packages of an extra. The code imports them where it uses them, after `require`."""

from importlib.util import find_spec


def require(*packages: str, extra: str = "train") -> None:
    """Tell in one line how to install what is missing.

    Args:
        packages: names to import, all of the extra.
        extra: of this package.

    Raises:
        ImportError: if one of them is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"This needs the extra `{extra}` of hsvae_hf, of which {', '.join(missing)} cannot be imported; "
            f"run: pip install 'hsvae_hf[{extra}]'"
        )
