"""Whether an export of the InternLM2 format does in this transformers what our model does.

    python check_export.py FOLDER EXPECTED.pt

It needs torch and transformers only, so that it runs in an environment of any version: `check_transformers_versions.py`
makes them. EXPECTED.pt holds `tokens` `[2, seq]`, our fp32 `logits` of them, a `text` and its `ids`.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

CLOSE = 1e-4


def check(folder: str, expected: dict) -> None:
    """Raises AssertionError with the name of the first thing that is not as it must be."""
    torch.set_grad_enabled(False)
    try:
        model = load(folder)
        tokens = expected["tokens"]
        logits_are(model, tokens, expected["logits"])
        attention_is_causal(model, tokens)
        padding_changes_nothing(model, tokens)
        caches_change_nothing(model, tokens)
        generation_agrees(model, tokens[:, :9])
        a_saved_copy_is_the_same(model, tokens)
        training_works(model, tokens)
        tokenizer_agrees(folder, expected["text"], expected["ids"])
        plain_configuration(model.config, expected["rope_theta"])
    finally:
        torch.set_grad_enabled(True)


def load(folder: str):
    """In fp32, whatever it is stored as; older versions do not know `dtype`."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).float().eval()


def near(a, b, what: str) -> None:
    """Raises AssertionError unless the two differ by less than CLOSE."""
    assert a.shape == b.shape, (what, a.shape, b.shape)
    difference = (a - b).abs().max().item()
    assert difference < CLOSE, (what, difference)


def logits_are(model, tokens, ours) -> None:
    near(model(tokens).logits, ours, "logits")
    assert model(tokens, output_hidden_states=True).hidden_states[0].shape[:2] == tokens.shape
    near(model(tokens, return_dict=False)[0], ours, "logits in a tuple")


def attention_is_causal(model, tokens) -> None:
    changed = tokens.clone()
    changed[:, -5:] = (changed[:, -5:] + 1) % model.config.vocab_size
    for mask in (None, torch.ones_like(tokens)):
        before, after = (model(t, attention_mask=mask).logits for t in (tokens, changed))
        near(before[:, :-5], after[:, :-5], "a later token reaches earlier logits")
        assert (before[:, -1] - after[:, -1]).abs().max() > 0.01, "a token does not reach its own logits"


def padding_changes_nothing(model, tokens) -> None:
    """A row beside a longer one: as by itself."""
    short = tokens[1, :-7]
    alone = model(short[None]).logits[0]
    for left in (True, False):
        rows, mask = tokens.clone(), torch.ones_like(tokens)
        here, there = (slice(7, None), slice(0, 7)) if left else (slice(0, -7), slice(-7, None))
        rows[1, here], rows[1, there], mask[1, there] = short, 0, 0
        logits = model(rows, attention_mask=mask).logits
        near(logits[1, here], alone, f"padding on the {'left' if left else 'right'}")
        assert logits.isfinite().all(), "padding gives NaN"


def caches_change_nothing(model, tokens) -> None:
    """The first tokens, then some, then one by one: what one pass gives. With transformers' cache, and with pairs."""
    whole = model(tokens).logits
    head = tokens.shape[1] - 6
    first = model(tokens[:, :head], use_cache=True)
    empty = torch.zeros(2, model.config.num_key_value_heads, 0, model.model.layers[0].attention.head_dim)
    pairs = tuple((empty, empty) for _ in model.model.layers)
    second = model(tokens[:, :head], past_key_values=pairs, use_cache=True)
    assert isinstance(second.past_key_values, tuple)
    for out in (first, second):
        parts = [out.logits]
        for start, end in ((head, head + 3), *((n, n + 1) for n in range(head + 3, tokens.shape[1]))):
            out = model(tokens[:, start:end], past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
        near(torch.cat(parts, 1), whole, "logits with a cache")


def generation_agrees(model, prompts, count: int = 12) -> None:
    """Greedy, row by row or as a batch with padding, with a cache or without; beams with a cache or without."""
    settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    short = prompts[1:, 3:]
    alone = []
    for row in (prompts[:1], short):
        wanted = row
        for _ in range(count):
            logits = model(wanted).logits[:, -1]
            logits[:, model.generation_config.eos_token_id] = -torch.inf
            wanted = torch.cat([wanted, logits.argmax(-1, keepdim=True)], 1)
        for use_cache in (True, False):
            ones = torch.ones_like(row)
            found = model.generate(row, attention_mask=ones, use_cache=use_cache, **settings)
            assert found.tolist() == wanted.tolist(), f"greedy generation, use_cache {use_cache}"
        alone.append(wanted[0, row.shape[1] :].tolist())
    rows, mask = prompts.clone(), torch.ones_like(prompts)
    rows[1, :3], mask[1, :3] = 0, 0
    for use_cache in (True, False):
        found = model.generate(rows, attention_mask=mask, use_cache=use_cache, **settings)
        assert found[:, prompts.shape[1] :].tolist() == alone, f"generation of a batch, use_cache {use_cache}"
    beams = [model.generate(rows, attention_mask=mask, use_cache=c, num_beams=3, **settings) for c in (True, False)]
    assert beams[0].tolist() == beams[1].tolist(), "beams"


def a_saved_copy_is_the_same(model, tokens) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder).eval()
        near(again(tokens).logits, model(tokens).logits, "logits of a saved copy")
        plain_configuration(again.config, model.config.rope_theta)


def training_works(model, tokens) -> None:
    """The loss is the mean over what is labelled, and recomputation gives the same gradients."""
    labels = tokens.clone()
    labels[0, :9] = -100
    logs = model(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    near(model(tokens, labels=labels).loss, -logs[labels[:, 1:] != -100].mean(), "loss")
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with torch.enable_grad():
            model(tokens, labels=labels).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    model.gradient_checkpointing_disable()
    model.eval()
    near(gradients[0], gradients[1], "gradients with recomputation")
    assert gradients[0].abs().max() > 0


def tokenizer_agrees(folder: str, text: str, ids: list[int]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found == ids, "the tokenizer's ids"
    assert tokenizer.decode(ids) == text, "the text of ids"


def plain_configuration(config, rope_theta: float) -> None:
    assert vars(config)["rope_theta"] == rope_theta, "rope_theta is no plain attribute"
    assert config.to_dict()["rope_theta"] == rope_theta


if __name__ == "__main__":
    check(sys.argv[1], torch.load(sys.argv[2]))
    print(f"transformers {__version__}: as it must be")
