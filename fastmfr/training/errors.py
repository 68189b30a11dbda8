"""What ends a run other than a wrong argument or file."""


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the message names the domain, the loss and the step."""
