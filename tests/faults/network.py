"""Two nodes on one machine: network namespaces with a link between them that can be cut. Needs root.

A trial's processes enter them after the fork, so that gloo, the store and the heartbeats cross a link that is really down.
"""

import contextlib
import ctypes
import os
import subprocess
import time

NEW_NET = 0x40000000  # CLONE_NEWNET of <sched.h>; os.setns came with Python 3.12
ADDRESSES = ("10.231.77.1", "10.231.77.2")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class TwoNodes:
    """A context: nodes 0 and 1, the first half of the ranks on 0."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.names = [f"trial-{os.getpid()}-{node}" for node in (0, 1)]
        self.links = [f"tr{os.getpid() % 10**8}n{node}" for node in (0, 1)]  # at most 15 characters

    def __enter__(self) -> "TwoNodes":
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        first, second = self.links
        _ip(
            "link", "add", first, "netns", self.names[0], "type", "veth", "peer", "name", second, "netns", self.names[1]
        )
        for name, link, address in zip(self.names, self.links, ADDRESSES):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            _ip("-n", name, "link", "set", link, "up")
        return self

    def __exit__(self, *_) -> None:
        for name in self.names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def enter(self, rank: int) -> None:
        """Move this process, which has one thread, to the node of its rank."""
        node = 2 * rank // self.world
        self.join(node)
        os.environ |= {"MASTER_ADDR": ADDRESSES[0], "GLOO_SOCKET_IFNAME": self.links[node]}

    def join(self, node: int) -> None:
        """Move this process to a node."""
        with open(f"/run/netns/{self.names[node]}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), NEW_NET):
                raise OSError(ctypes.get_errno(), "setns failed")

    def cut(self, seconds: float) -> None:
        """Take the link down and, after `seconds`, up again."""
        _ip("-n", self.names[0], "link", "set", self.links[0], "down")
        try:
            time.sleep(seconds)
        finally:
            _ip("-n", self.names[0], "link", "set", self.links[0], "up")


def may_make_nodes() -> bool:
    """Whether namespaces can be made: it needs a permission and `ip`."""
    try:
        with TwoNodes(2):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
