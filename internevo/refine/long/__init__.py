"""The long-context chain: long texts that are more than the sum of their parts."""
