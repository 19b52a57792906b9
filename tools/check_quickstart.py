"""Fails unless a finished quickstart learned: what CI runs after a quickstart.

python tools/check_quickstart.py quickstart
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from internevo.monitor.conversations import CONVERSATIONS
from internevo.monitor.metrics import EVALS, read_metrics
from internevo.quickstart.corpus import KINDS
from internevo.quickstart.run import far_loss

MARGIN = 1.0
"""Nats by which held-out loss must be below what token frequencies alone give."""


RIGHT = 0.75
"""The share of the answers that must be word for word what was planted."""


def wrong_answers(run: Path) -> list[str]:
    """What is wrong with what a quickstart with `--chat` answered; nothing where there was none."""
    if not run.exists():
        return []
    talks = json.loads((run / CONVERSATIONS).read_text(encoding="utf-8"))
    answers = [one for talk in talks for one in talk if one["role"] == "assistant"]
    right = sum(one["content"] == one["expected"] for one in answers)
    ended = sum(one["end"] == "stop" for one in answers)
    print(f"planted questions: {right} of {len(answers)} answered word for word, {ended} ended by themselves")
    failed = []
    if not answers or right < RIGHT * len(answers):
        failed.append(f"fewer than {RIGHT:.0%} of the planted questions were answered")
    if ended < len(answers):
        failed.append("not all answers ended by themselves")
    return failed


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
    failed += wrong_answers(Path(sys.argv[1]) / "runs" / "chat")
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
