"""Several processes of one run on this machine, through torchrun's own agent."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Sequence

from internevo.files.signals import stop_signals

GRACE, GRACE_S = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600"
"""Seconds that ranks have to save when they are asked to stop; torchrun itself would kill them after 30."""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `internevo ARGUMENTS` as `processes` ranks on this machine; the exit code that the run ended with.

    When one rank fails, the others are stopped. On SIGTERM, Ctrl-C or SIGHUP (not under nohup) all save and leave.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault(GRACE, GRACE_S)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=",".join(one.name for one in (*stop_signals(), signal.SIGQUIT)),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "internevo", *arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
