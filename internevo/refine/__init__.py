"""The refinery: web pages, code and long texts to a corpus, by filtering and deduplication in steps."""
