"""`python -m phloem.launch.replica`: one replica of `phloem serve --dp N`, started by launch.replicated.

Its configuration comes on standard input, its listening socket as the descriptor that the argument names. It lives no
longer than its parent: standard input stays open as long as that lives, and its end stops this process as SIGTERM does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

import msgspec

from phloem.core.errors import CallerError, PhloemError
from phloem.core.resolve import Resolved
from phloem.launch.order import EXIT_CALLER, EXIT_ENGINE
from phloem.launch.serve import serve


def main() -> int:
    """Serve on the socket given; the exit code is that of `phloem serve`."""
    resolved = msgspec.json.decode(sys.stdin.buffer.readline(), type=Resolved)
    threading.Thread(target=_stop_with_parent, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        return serve(resolved, listener=socket.socket(fileno=int(sys.argv[1])))
    except PhloemError as error:
        print(f"phloem: error: {error.message}", file=sys.stderr)
        return EXIT_CALLER if isinstance(error, CallerError) else EXIT_ENGINE
    except KeyboardInterrupt:
        return 0


def _stop_with_parent(stdin: int) -> None:
    while os.read(stdin, 1):  # nothing more is ever written: this waits for the end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
