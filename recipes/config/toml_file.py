"""Reads TOML files as people's editors write them. Free of torch."""

import codecs
from pathlib import Path
from typing import Any

import tomli

MAX_BYTES = 2**24
"""More is no configuration: data, or a device without end."""

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The file's tables. Raises ValueError, one line that begins with the path, for what is no
    TOML, and OSError for what cannot be read."""
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES // 2**20} MiB: it is no TOML file.")
    if content.startswith(_WIDE) or b"\0" in content:
        raise ValueError(f"{path} is UTF-16, or no text. TOML is UTF-8: save it as that.")
    try:
        return tomli.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Save it as that.") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid TOML: it is nested too deeply.") from None
    except ValueError as error:  # of the syntax, or a number of thousands of digits
        raise ValueError(f"{path} is not valid TOML: {str(error).rstrip('.')}.") from None
