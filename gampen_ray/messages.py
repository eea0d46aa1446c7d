"""Text from outside, made fit for a terminal, a log or a record: without control characters, without credentials."""

import re
import reprlib

__all__ = ["brief", "counted", "printable", "redacted", "rounded"]

# The part of a URI before the host, and the value of a parameter that is named like a secret.
_USER = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/?#\"'\\]+@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|pwd|secret|token|access_?key|api_?key|credential|signature|\bsig)[\w.-]*=)[^\s&;#\"'\\]+",
    re.IGNORECASE,
)
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def redacted(text: str) -> str:
    """Return a text in which the credentials of URIs are replaced: ``https://***@host/?token=***``."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(r"\1***", _USER.sub(r"\1***@", text))


def printable(text: str, lines: bool = False) -> str:
    """Return a redacted text that a terminal shows as it is.

    Control characters, such as those of escape sequences, and invisible ones, such as those that change the direction of
    writing, are written as Python writes them: ``\\x1b``. ``lines``: line breaks stay.
    """
    text = redacted(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``"no galaxy"``, ``"1 galaxy"``, ``"2,000 galaxies"``; an empty plural has an s."""
    return f"{count or 'no'} {noun}" if count in (0, 1) else f"{count:,} {plural or noun + 's'}"


def rounded(value: float, digits: int = 3) -> str:
    """Return a number of so many significant digits as a reader writes it: 1,010 and not 1.01e+03."""
    return f"{float(f'{value:.{digits}g}'):,.12g}"


def brief(value: object) -> str:
    """Return a value as Python writes it, with an ellipsis in place of what is long."""
    return _BRIEF.repr(value)
