"""What ends a run although nobody gave a wrong option."""


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where it stands and what to do."""
