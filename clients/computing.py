"""What a device computes with."""

import torch
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from .device import num_threads


def keep_to_threads(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Sets torch's threads before anything is built; a Flower mod. Simulated workers set their own."""
    if not context.node_config.get("fedhp-simulation"):
        torch.set_num_threads(num_threads(context.node_config))
    return call_next(message, context)
