"""A look at something every so often, in a thread beside what is going on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def looking(look: Callable[[], None], every_s: float, name: str) -> Iterator[None]:
    """Inside, `look` is called every `every_s` seconds, in a daemon thread of that name."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(every_s):
            look()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
