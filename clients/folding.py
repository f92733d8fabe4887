"""Arrays on their way through Flower: unfolded where they come, folded where they go."""

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedhp.federation.folding import fold, is_folded, unfold


def unfold_and_fold(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answers a folded message with a folded one; a Flower mod."""
    if not (message.has_content() and is_folded(message.content)):
        return call_next(message, context)
    message.content = unfold(message.content)
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = fold(reply.content)
    return reply
