"""FedProx (Li et al. 2020, arXiv 1812.06127): each client is pulled back to the weights that it received."""

from fedhp.costs.memory import Extras
from fedhp.model.kernels import kernels_of
from fedhp.model.optimizer import Optimizer, parameters_of
from fedhp.training.method import ClientRun, Method
from fedhp.training.recipe import Recipe

_RECEIVED = "received"  # the key, in an optimiser's state, of the weights that it pulls towards


class FedProx(Method):
    """Adds the proximal term's gradient to each step's."""

    name = "fedprox"
    stackable = True
    on_arrays = True

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where the pull has a strength."""
        return recipe.train.proximal_mu > 0

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """The received weights."""
        return Extras(slots=1)

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """Its key."""
        return f"train.proximal_mu = {recipe.train.proximal_mu:g}"

    def begin(self, run: ClientRun) -> None:
        """Keeps the weights as they are."""
        keep_received(run.optimizer)

    def on_gradients(self, run: ClientRun) -> None:
        """Pulls."""
        pull_back(run.part[1], run.recipe.train.proximal_mu)


def keep_received(optimizer: Optimizer) -> None:
    """Keeps the weights as they are now in the optimiser's state: cut, counted and freed with it."""
    for parameter in parameters_of(optimizer):
        weights = parameter.data
        optimizer.state[parameter][_RECEIVED] = kernels_of(weights).copied(weights)


def pull_back(optimizer: Optimizer, mu: float) -> None:
    """Adds the gradient of FedProx's proximal term, ``mu * (w - w_received)``, to those of the loss.

    The term is ``mu / 2 * |w - w_received|^2`` (Li et al. 2020, arXiv 1812.06127, equation 2), over what is
    left of the model. No memory is taken: the difference is made in the place of the received weights, and
    undone; exactly so unless a weight has changed by more than half, and then but for rounding.

    Args:
        optimizer: The optimiser, which has kept what was received.
        mu: The strength.
    """
    for parameter in parameters_of(optimizer):
        if parameter.grad is not None:
            received, weights = optimizer.state[parameter][_RECEIVED], parameter.data
            # Not mu * w - mu * w_received: what that leaves where nothing has moved, by rounding, Adam
            # would scale up to steps of full length.
            received -= weights
            kernels_of(weights).lessen(parameter.grad, received, mu)
            received += weights
