"""What is printed: characters of names and messages that a terminal would obey are shown escaped."""

import logging
import re

import typer

# C0 and C1 controls but for tab and line feed, marks that turn the direction of writing, separators of lines, and
# surrogates, which stand for bytes of a file name that are no UTF-8 and cannot be encoded.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with such characters as `\x1b`, `\u202e`."""
    return _OBEYED.sub(lambda found: _escaped(ord(found[0])), text)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def echo(text: str, err: bool = False, nl: bool = True) -> None:
    """Print a line to standard output, or to standard error; `nl`: end it."""
    typer.echo(printable(text), err=err, nl=nl)


class PrintableFormatter(logging.Formatter):
    """Formats records for a terminal or a log file that is looked at in one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, escaped."""
        return printable(super().format(record))
