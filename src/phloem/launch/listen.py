"""A port to listen on, or what stands in the way of it."""

from __future__ import annotations

import errno
import socket

from phloem.core.errors import ConfigError

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, bound before anything slow happens. ConfigError names the port or the host and the remedy."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host!r} is not an address of this machine: {error}", field="host") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _listen_error(error, host, port) from error
    return listener


def _listen_error(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else 8000
        return ConfigError(
            f"port {port} on {host} is in use; stop what listens there, or choose another port, such as --port {other} "
            "(--port 0 takes any free one)",
            field="port",
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} needs privileges; choose one above 1023, such as --port 8000", field="port")
    return ConfigError(f"cannot listen on {host} port {port}: {error.strerror}", field="host")
