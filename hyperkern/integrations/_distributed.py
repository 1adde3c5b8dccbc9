"""What several processes ask of a drop-in replacement."""

from torch import distributed


def refuse_gathering(what: str) -> None:
    """Raises where the original would gather the features of several processes.

    Args:
        what: the loss or the option that gathers, for the message.

    Raises:
        NotImplementedError: the process group has more than one process.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise NotImplementedError(
            f"{what} gathers features across processes, of which there are {distributed.get_world_size()}; hyperkern "
            "does not do that yet"
        )
