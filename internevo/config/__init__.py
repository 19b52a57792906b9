"""The configuration: one strict tree."""
