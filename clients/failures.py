"""What a device could not do, told to the server in one line."""

import logging

from flwr.app import Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode

from fedhp.errors import FedhpError, needing_torch

logger = logging.getLogger(__name__)
_shown = logging.getLogger("flwr")  # the only logger that a SuperNode shows


def tell_failures(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answers with an error "client: kind: cause" where fedhp refuses; a Flower mod.

    Flower would answer itself, but with a reason for programmers, and print a traceback on the device. What
    fedhp did not foresee is left to it.
    """
    try:
        with needing_torch():
            return call_next(message, context)
    except (FedhpError, MemoryError) as error:
        reason = f"client: {type(error).__name__}: {error}"
        log = logger.debug if context.node_config.get("fedhp-simulation") else _shown.warning
        log("fedhp: refused to %s: %s", message.metadata.message_type, error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
