"""Who waits for whom on a busy machine: grammars and masks for the steps of the engine, never the other way round."""

from __future__ import annotations

import os
import sys
import threading

NICE = 10


def yield_to_steps() -> None:
    """Lower the calling thread: it may wait for a core, a step may not. On Linux a thread has a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
