"""Characters that end a line or steer a terminal: none in what a user names, none printed as is.

Free of torch.
"""

import re

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029"  # Unicode's control characters and line ends
    "\u202a-\u202e\u2066-\u2069]"  # these turn the direction of what is shown
)
_SURROGATE = re.compile("[\ud800-\udfff]")
"""How Python holds a byte that is not UTF-8."""


def is_utf8(text: str) -> bool:
    """Whether it can be written to a file: a name, or an argument, may be any bytes."""
    return _SURROGATE.search(text) is None


def find_fault(text: str) -> str | None:
    """Why `text` is no name, in words that follow it; None if it can be one."""
    if not is_utf8(text):
        return "is not UTF-8"
    return "has a control character" if _CONTROL.search(text) else None


def escape(text: str) -> str:
    """The text on one line, with `\\x1b` and the like for what is no character to be seen."""
    for pattern in (_CONTROL, _SURROGATE):
        text = pattern.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return text
