"""FjORD: ordered dropout."""

from fedhp.training.methods.ordered_dropout import OrderedDropout

from .submodel import Nested


class Fjord(Nested):
    """The first units; each step trains one of the widths that the device holds.

    Those are the widest that the device holds, and the narrower ones of ``strategy.levels``, by default its
    paper's 0.2, 0.4, 0.6, 0.8 and 1.
    """

    methods = (OrderedDropout.name,)
    paper = "Horvath et al. 2021, arXiv 2102.13451"
