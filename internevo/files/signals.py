"""Which signals ask a session to save and leave."""

from __future__ import annotations

import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, Ctrl-C, and SIGHUP, which a terminal or an ssh connection sends when it is closed.

    Without SIGHUP where this process began with it ignored: `nohup` means that the session outlives its terminal.
    """
    always = (signal.SIGTERM, signal.SIGINT)
    return always if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*always, signal.SIGHUP)
