"""Whose clock counts: the server's, as a small device may know no time."""

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable


def answer_in_time(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Lets an answer be valid for as long as its question is, by the server's clock alone; a Flower mod.

    By Flower's own arithmetic a device whose clock is ahead of the server's by more than a question's time
    answers when that is over, and its answers are dropped.
    """
    reply = call_next(message, context)
    reply.metadata.created_at, reply.metadata.ttl = message.metadata.created_at, message.metadata.ttl
    return reply
