"""The refinery: from what was collected to what is worth training on, step by step."""
