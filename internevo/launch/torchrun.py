"""One run on several processes, through torchrun: of this machine, or of several that ssh reaches.

All machines see the same folders (the working directory, Python's environment, the data) under the same paths. Their
output comes line by line with the machine's name.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import IO

from internevo.files.errors import UserError
from internevo.files.signals import stop_signals, stops_noted

_GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_GRACE_S = 3600  # seconds that ranks have to save when they are asked to stop; torchrun would kill them after 30
PASSED = ("CUDA_", "GLOO_", "HF_", "NCCL_", "OMP_", "PYTHON", "TORCH", "WANDB_", "XDG_CACHE_HOME", "PATH", "LD_LIBRARY")
"""Environment variables with names that begin with one of these go to every machine."""
_POLL_S = 0.2


def launch_here(arguments: Sequence[str], processes: int) -> int:
    """Run `internevo ARGUMENTS` as `processes` ranks on this machine; the exit code that the run ended with.

    When one rank fails, the others are stopped. On SIGTERM, Ctrl-C or SIGHUP (not under nohup) all save and leave.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault(_GRACE, str(_GRACE_S))
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


def launch_over_ssh(
    arguments: Sequence[str], nodes: Sequence[str], processes: int, show: Callable[[str], None], ssh: Sequence[str]
) -> int:
    """Run `internevo ARGUMENTS` with `processes` ranks on each of `nodes`; the exit code that the run ended with.

    `show` is given every line of their output, from several threads. The ranks meet on the first node, at port 29400.
    On SIGTERM, Ctrl-C or SIGHUP (not under nohup) all ranks save and leave; so do those of a node whose connection is
    lost. When one node's part fails, the others are stopped. Raises UserError when two nodes have one name.
    """
    if len(set(nodes)) < len(nodes):
        raise UserError(f"--nodes names one machine twice: {', '.join(nodes)}")
    name = f"internevo-{uuid.uuid4().hex[:12]}"
    parts = [
        _Part(node, [*ssh, node, _command(arguments, nodes, number, processes, name)], show)
        for number, node in enumerate(nodes)
    ]
    try:
        with stops_noted() as asked:
            return _watch(parts, asked, lambda node: [*ssh, node, f"kill -TERM $(cat /tmp/{name}-{_place(node)}.pid)"])
    finally:
        for part in parts:
            part.close()


class _Part:
    def __init__(self, node: str, command: Sequence[str], show: Callable[[str], None]):
        self.node, self._show_line = node, show
        # a session of its own: Ctrl-C reaches the ranks through us, once. Its input says there that we are alive
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._reader = threading.Thread(target=self._show, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _show(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._show_line(f"[{self.node}] {line.decode(errors='replace')}")

    def close(self) -> None:
        """Kill it if it still runs, and show the last of its output."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._reader.join(5)


def _watch(parts: Sequence[_Part], asked: list[int], stop: Callable[[str], list[str]]) -> int:
    stopping = False
    deadline = float("inf")
    while True:
        codes = [part.process.poll() for part in parts]
        failed = [code for code in codes if code]
        if all(code is not None for code in codes):
            if asked:
                return 128 + asked[0]
            # 255 is ssh's own trouble; a rank's code says more
            return next((code for code in failed if code not in (143, 255)), failed[0] if failed else 0)
        if (asked or failed) and not stopping:
            stopping, deadline = True, time.monotonic() + _GRACE_S
            for part, code in zip(parts, codes, strict=True):
                if code is None:
                    subprocess.run(stop(part.node), stdin=subprocess.DEVNULL, check=False)
        if time.monotonic() > deadline:
            return 1
        time.sleep(_POLL_S)


def _command(arguments: Sequence[str], nodes: Sequence[str], number: int, processes: int, name: str) -> str:
    """The command of the machine of this number, as one line for its shell."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={len(nodes)}",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={_address(nodes[0])}:29400",
        f"--rdzv-conf=is_host={int(number == 0)}",
        f"--rdzv-id={name}",
        f"--local-addr={_address(nodes[number])}",
        "--monitor-interval=0.5",
        "-m",
        "internevo",
        *arguments,
    ]
    passed = {_GRACE: str(_GRACE_S), **{key: value for key, value in os.environ.items() if key.startswith(PASSED)}}
    variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in sorted(passed.items()))
    # the shell's number stays that of torchrun, so that it can be told to stop: by us, or when the connection is gone,
    # with which the input ends
    return (
        f"cd {shlex.quote(os.getcwd())} && echo $$ > /tmp/{name}-{_place(nodes[number])}.pid && exec 3<&0 && "
        "{ { cat <&3; kill -HUP $$; } > /dev/null 2>&1 & } && "
        f"exec env {variables} {shlex.join(torchrun)} 3<&- < /dev/null"
    )


def _address(node: str) -> str:
    """`user@host` without the user."""
    return node.rpartition("@")[2]


def _place(node: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in node)
