"""What a device computes with."""

import torch

from .device import NodeConfig, num_threads


def keep_to_threads(node: NodeConfig) -> None:
    """Sets torch's threads, before anything is built. Simulated workers set their own.

    Raises:
        ScenarioError: If the node configuration says no such number.
    """
    if not node.get("fedhp-simulation"):
        torch.set_num_threads(num_threads(node))
