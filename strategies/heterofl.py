"""HeteroFL: nested widths."""

from .submodel import Nested


class HeteroFL(Nested):
    """Every client trains the first units, averaged over the clients that hold them.

    ``strategy.levels=[1,0.5,0.25,0.125,0.0625]`` are its paper's widths; masking of absent labels is
    ``train.masked_loss``. Its scaler, which divides a narrow layer's output by its width in training, and its
    batch statistics, which are taken in a pass of their own, are the network's: ``model.name=heterofl_cnn``,
    or one of your own with `fedhp.model.scaler.Scaler`. The scenario ``heterofl_mnist`` has them all.
    """

    paper = "Diao et al. 2021, arXiv 2010.01264"
