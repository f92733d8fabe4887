"""HeteroFL: nested widths."""

from .submodel import Nested


class HeteroFL(Nested):
    """Every client trains the first units, averaged over the clients that hold them.

    ``strategy.levels=[1,0.5,0.25,0.125,0.0625]`` are its paper's widths. Batch statistics are the means over
    the clients' samples, where the paper takes them in a pass of their own; masking of absent labels is
    ``train.masked_loss``; its scaler, which divides a narrow layer's output by its width in training, is not
    done.
    """

    paper = "Diao et al. 2021, arXiv 2010.01264"
