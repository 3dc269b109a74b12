"""Two hosts on this machine: namespaces with a network, a host name, files and processes of their own, and a cable."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

OWN = ("--net", "--uts", "--mount", "--pid")
ADDRESSES = {"host-a": "10.99.0.1", "host-b": "10.99.0.2"}


def missing() -> str | None:
    """Why there can be no such hosts here; None where they can."""
    absent = [name for name in ("unshare", "nsenter", "ip", "mount") if not shutil.which(name)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid():
        return "namespaces need root"
    probe = "hostname probe && mount -t tmpfs none /mnt && ip link add one type veth peer name two"
    done = subprocess.run(["unshare", *OWN, "--fork", "sh", "-c", probe], capture_output=True, text=True, check=False)
    return f"namespaces: {done.stderr.strip()}" if done.returncode else None


class Hosts:
    """While entered, `host-a` and `host-b` reach each other by these names, and nothing else."""

    def __init__(self, directory: Path) -> None:
        self._names = directory / "hosts"
        self._first: dict[str, subprocess.Popen[str]] = {}  # process of a host, with whose end all others end
        self._pids: dict[str, str] = {}

    def __enter__(self) -> Self:
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in ADDRESSES.items())]
        self._names.write_text("\n".join(lines) + "\n")
        try:
            for name in ADDRESSES:
                self._boot(name)
            ends = [end for name in ADDRESSES for end in ("netns", self._pids[name])]
            self._run("ip", "link", "add", "name", "cable", *ends[:2], "type", "veth", "peer", "cable", *ends[2:])
            for name, address in ADDRESSES.items():
                self._run(*self.inside(name, "ip", "address", "add", f"{address}/24", "dev", "cable"))
                self._run(*self.inside(name, "ip", "link", "set", "cable", "up"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._first.values():
            process.kill()
            process.wait()

    def inside(self, name: str, *command: str) -> list[str]:
        """The command that runs `command` on a host."""
        return ["nsenter", "--target", self._pids[name], *OWN, "--wd=.", "--", *command]

    def cover(self, name: str, path: Path) -> None:
        """Let a directory be empty on a host."""
        self._run(*self.inside(name, "mount", "-t", "tmpfs", "none", str(path)))

    def power_off(self, name: str) -> None:
        """End a host so that not even its network says good-bye."""
        self._run(*self.inside(name, "ip", "link", "set", "cable", "down"))
        self._first[name].kill()
        self._first[name].wait()

    def _boot(self, name: str) -> None:
        steps = (f"hostname {name}", f"mount --bind {self._names} /etc/hosts", "ip link set lo up", "echo up")
        script = " && ".join([*steps, "exec sleep 900"])
        command = ["unshare", *OWN, "--mount-proc", "--kill-child", "--fork", "sh", "-c", script]
        process = self._first[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", f"{name} does not start"
        self._pids[name] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
