"""internevo: a distributed LLM pretraining framework on PyTorch."""

__version__ = "0.1.0"
