"""EleutherAI's lm-evaluation-harness on a checkpoint of ours, without an export in between.

Importing this registers the model `internevo` with the harness; it gives the numbers that the harness' own `hf` model
gives for the export. With a tokenizer that begins texts with BOS, that takes `add_bos_token=False` where whole texts
are scored: else it counts how surprising a second BOS is after the first, which no text has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from internevo.config.schema import Precision
from internevo.eval.scorer import Scorer
from internevo.files.errors import UserError
from internevo.model.generate import generate
from internevo.parallel.world import World
from internevo.train.build import choose_device
from internevo.train.stored_model import StoredModel, open_model

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise UserError("lm-evaluation-harness is missing: pip install 'internevo[eval]'") from None

_GENERATED = 256  # maximum new tokens where a task does not say


@register_model("internevo")
class InternevoLM(TemplateLM):
    """A run, an import or a Hugging Face folder as a model of the harness. `path` may be an opened model."""

    def __init__(
        self,
        path: str | StoredModel,
        precision: Precision = "fp32",
        device: str = "auto",
        world: World | None = None,
        **unused: Any,
    ):
        super().__init__()
        stored = open_model(path) if isinstance(path, str) else path
        world = world or World.alone(choose_device(device))
        self.max_length, self.text = stored.seq_len, stored.needs_tokenizer()
        self.never = self.text.unused(stored.config.vocab)
        self.scorer = Scorer(stored, world, stored.seq_len + 1, precision)

    @property
    def eot_token_id(self) -> int:
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.text.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.text.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """Ids, after the prefix of every text unless `add_special_tokens` is False."""
        ids = self.text.encode(string)
        return ids if add_special_tokens is False else [*self.text.prefix, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        rows = [np.array((context + said)[-(self.max_length + 1) :], np.int64) for _, context, said in requests]
        scored = self.scorer.score(rows)
        return [
            (-float(one.losses[-len(said) :].sum(dtype=np.float64)), bool(one.correct[-len(said) :].all()))
            for one, (_, _, said) in zip(scored, requests, strict=True)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, the first token after one BOS."""
        totals = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            begun = ids[:1] == [self.prefix_token_id]  # a text may spell it where it is an ordinary token
            windows = get_rolling_token_windows(
                token_list=ids[begun:], prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            pieces = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(pieces)))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, asked: dict[str, Any]) -> str:
        until = asked.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        count = int(asked.get("max_gen_toks", _GENERATED))
        prompt = self.tok_encode(context)[-(self.max_length - count) :]
        temperature = float(asked.get("temperature") or 0.0) if asked.get("do_sample") else 0.0
        ids: list[int] = []
        new = generate(
            self.scorer.model.transformer,
            prompt,
            count,
            temperature=temperature,
            eos_id=self.eot_token_id,
            never=self.never,
            generator=torch.Generator(device=self.scorer.world.device).manual_seed(0),
        )
        for token in new:
            ids.append(token)
            if any(stop in self.text.decode(ids) for stop in stops):
                break
        text = self.text.decode(ids)
        for stop in stops:
            text = text.partition(stop)[0]
        return text


def run_tasks(
    stored: StoredModel,
    world: World,
    tasks: Sequence[str],
    *,
    precision: Precision = "fp32",
    include: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
) -> dict[str, dict[str, Any]]:
    """The harness' metrics by task. `include` is a folder with tasks of one's own.

    Raises UserError when the harness does not know a task.
    """
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise UserError(f"lm-evaluation-harness does not know the tasks {', '.join(unknown)}")
    found = simple_evaluate(
        model=InternevoLM(stored, precision, world=world),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        num_fewshot=fewshot,
        bootstrap_iters=0,
        log_samples=False,
        verbosity="ERROR",
    )
    return {task: {k: v for k, v in values.items() if k != "alias"} for task, values in found["results"].items()}
