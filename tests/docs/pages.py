"""Fenced blocks of the documentation; tests/docs/README.md tells what each kind means."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^( *)```+ *(.*?) *$")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first line of content, counted from 1
    info: str
    text: str

    @property
    def where(self):
        return f"{self.page.name}:{self.line}"

    @property
    def runs(self):
        return self.info == "sh"


def blocks(page):
    """The fenced blocks of a page, in order."""
    found, fence, info, start, content = [], None, "", 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        match = _FENCE.match(line)
        if fence is None and match:
            fence, info, start, content = match[1], match[2], number + 1, []
        elif fence is not None and match and not match[2]:
            found.append(Block(page, start, info, "\n".join(content) + "\n"))
            fence = None
        elif fence is not None:
            content.append(line.removeprefix(fence))
    assert fence is None, f"{page.name}:{start}: the block is not closed"
    return found


def groups(text):
    """Parts of a shell block that are run each at once: one plain `headcount` command as words, or lines for bash."""
    waiting, found = [], []
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r"(headcount|make)\b", line):
            if waiting:
                found.append("\n".join(waiting))
                waiting = []
            found.append(line)
        else:
            waiting.append(line)
    if waiting:
        found.append("\n".join(waiting))
    return [group for group in found if any(code.strip() for code in strip_comments(group).splitlines())]


def strip_comments(text):
    return re.sub(r"(?m)(^|\s)#.*$", r"\1", text)
