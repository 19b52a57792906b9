"""What goes wrong with checkpoints."""

from internevo.files.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names it and says why."""


class NotFiniteError(CheckpointError):
    """A state that is not saved, because it holds NaN or infinity: training cannot recover from it."""
