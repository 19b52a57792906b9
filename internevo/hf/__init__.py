"""To the Hugging Face world: names, layouts, tokenizer files, and the check that nothing changed on the way."""
