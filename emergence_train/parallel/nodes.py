"""Which processes share a machine."""

import contextlib
import os
import socket


def node_name() -> str:
    """The same for two processes that reach each other at 127.0.0.1, and only for those."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):  # containers and network namespaces share host names; other systems have neither
        name += f" {os.stat('/proc/self/ns/net').st_ino}"
    return name
