"""What `tools/gpu_day.py` runs: its parts in order, the process that watches over them, and the checks themselves."""
