"""What a model can do: held-out loss by source and position, needles in haystacks, contamination, choices, lm-eval."""
