"""Attention kernels over packed documents, one a file; `model/attention.py` chooses between them.

Each has two functions. `reason(device, dtype, head_dim)` says in a few words why the kernel cannot run there, or None
when it can. `attend(q, k, v, documents)` takes q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]`
and gives a tensor like q.
"""
