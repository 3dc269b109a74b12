"""Text of unknown origin, fit for messages and tables: on one line, without characters that steer a terminal."""

_MAX_VALUE = 80
_MAX_SAID = 120
_MAX_ERROR = 200


def shown(value: object) -> str:
    """A value for a message, quoted as Python does it: on one line, of bounded length, whatever is in it."""
    if isinstance(value, list | tuple | dict | set):
        return type(value).__name__
    if isinstance(value, int) and value.bit_length() > 8 * _MAX_VALUE:  # Python does not print the longest
        return f"a number of {value.bit_length()} bits"
    text = repr(value[: _MAX_VALUE + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def shown_name(name: str) -> str:
    r"""A file's name in full, not quoted: bytes that are not UTF-8, and control characters, become \\ escapes."""
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown_start(text: str) -> str:
    """The start of a text, not quoted: one line of printable ASCII, of bounded length."""
    start = text[:_MAX_SAID].encode("ascii", "backslashreplace").decode()
    start = "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in start)
    return start + ("..." if len(text) > _MAX_SAID else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0] else type(error).__name__


def kind_and_line(error: BaseException) -> str:
    """An error of a library for people: its class and the first line of its message, of bounded length."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:_MAX_ERROR]
