"""Where a process is reached by others: on its own machine, and from other machines.

An address is ``["unix", name]`` or ``["tcp", host, port]``, so that it can be written as JSON.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
import uuid
from typing import TypeAlias

from diffgen.errors import ShardError

Address: TypeAlias = list[str | int]


def machine_identity() -> str:
    """What processes have in common that can meet at a local socket, and no others have."""
    if sys.platform == "linux":
        with open("/proc/sys/kernel/random/boot_id") as file:
            # Containers on one machine may have networks of their own.
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/net')}"
    return f"{socket.gethostname()} {uuid.getnode()}"


def listen_near(backlog: int) -> tuple[socket.socket, Address]:
    """Wait for processes of this machine.

    A Unix socket moves three times as many bytes a second as TCP with its usual buffers, and no
    other machine can reach it. Its name is abstract: no file that could be left behind.
    """
    if sys.platform == "linux":
        name = f"diffgen-{secrets.token_hex(16)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{name}")
        listener.listen(backlog)
        return listener, ["unix", name]
    return _listen_tcp("127.0.0.1", backlog)


def listen_far(store_host: str | None, backlog: int) -> tuple[socket.socket, Address]:
    """Wait for processes of other machines.

    The interface is, as in gloo, the one that ``GLOO_SOCKET_IFNAME`` names; else the one that
    faces the group's store; else that of this machine's name.

    Args:
        store_host: Where the group's store is, when it is behind the network.
        backlog: How many may knock at once.

    Raises:
        ShardError: No interface is found that other machines could reach.
    """
    tried = []
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    for find, argument in (
        (_address_of_interface, interface),
        (_address_facing, store_host),
        (_address_of_name, None if interface else socket.gethostname()),
    ):
        if not argument:
            continue
        try:
            address = find(argument)
            if not _is_loopback(address):
                return _listen_tcp(address, backlog)
            tried.append(f"{argument}: {address} is this machine only")
        except OSError as error:
            tried.append(f"{argument}: {error}")
        if interface:
            break
    raise ShardError(
        "no address found that other machines can reach: name the interface in "
        f"GLOO_SOCKET_IFNAME, got {'; '.join(tried)}"
    )


def connect(address: Address, timeout_s: float) -> socket.socket:
    """Connect to an address; ``OSError`` when nobody is there."""
    if address[0] == "unix":
        line = socket.socket(socket.AF_UNIX)
        try:
            line.settimeout(timeout_s)
            line.connect(f"\0{address[1]}")
        except BaseException:
            line.close()
            raise
        return line
    return socket.create_connection((str(address[1]), int(address[2])), timeout_s)


def _listen_tcp(host: str, backlog: int) -> tuple[socket.socket, Address]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=backlog)
    return listener, ["tcp", *listener.getsockname()[:2]]


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _address_of_interface(name: str) -> str:
    import fcntl

    request = 0x8915  # SIOCGIFADDR of Linux
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, request, struct.pack("256s", name.encode()[:15]))
    return socket.inet_ntoa(answer[20:24])


def _address_facing(host: str) -> str:
    # Connecting a datagram socket sends nothing; it only chooses the interface.
    found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, target = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _address_of_name(name: str) -> str:
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
