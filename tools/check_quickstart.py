"""Fails unless a finished quickstart learned: what CI runs after `make quickstart`.

python tools/check_quickstart.py quickstart
"""

from __future__ import annotations

import sys
from pathlib import Path

from internevo.monitor.metrics import EVALS, read_metrics
from internevo.quickstart.corpus import KINDS
from internevo.quickstart.run import far_loss

MARGIN = 1.0
"""Nats by which held-out loss must be below what token frequencies alone give."""


def main() -> int:
    """The exit code: 1 when something was not learned."""
    evals = read_metrics(Path(sys.argv[1]) / "runs" / "quickstart" / EVALS)
    last = {one["source"]: one for one in evals if one["stage"] == "enhance" and one["when"] == "end"}
    failed = []
    for kind in KINDS:
        loss, alone = last[kind]["loss"], last[kind]["frequencies"]
        print(f"{kind}: held-out loss {loss:.3f}, token frequencies alone {alone:.3f}")
        if not loss < alone - MARGIN:
            failed.append(f"{kind} is not {MARGIN} nats below its token frequencies")
    far = {one["when"]: far_loss(one, 256) for one in evals if one["stage"] == "long" == one["source"]}
    print(f"positions past 256 of long documents: {far['start']:.3f} before the long stage, {far['end']:.3f} after it")
    if not far["end"] < far["start"] - 0.1:
        failed.append("the long stage did not lower the loss at far positions")
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
