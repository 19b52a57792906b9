"""From a base model to one that talks: conversations as data."""
