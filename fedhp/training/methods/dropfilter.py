"""DropFilter: single elements of convolutions' filters are dropped in training.

DropFilter (Pan et al. 2018, arXiv 1811.06783) drops, in each step, elements of the filters, each with the
same probability; those that stay weigh as much more. DropFilter-PLUS (the same; later DropFilterR, Neural
Processing Letters 2019) drops others at each position of a convolution. Its paper quickens that by theory;
that we take a normal variate of the mean and the variance of each sum is our reading
(`fedhp.model.position_noise`). Another paper of a like name (Chen et al. 2018, arXiv 1810.09849) drops what
whole filters say, and is not this one.

Units are judged by the weights that there are, and by gradients through those that were not dropped.
Networks are evaluated whole.
"""

from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fedhp.costs.memory import Extras
from fedhp.errors import ScenarioError
from fedhp.seeds import derive
from fedhp.training.method import ClientRun, Method
from fedhp.training.recipe import Recipe

if TYPE_CHECKING:
    import torch


class DropFilter(Method):
    """Drops elements of filters; see above."""

    name = "dropfilter"

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where something is dropped."""
        return recipe.train.dropfilter.rate > 0

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """The filters as they are, and what they are multiplied by; or the noise, which is rehearsed."""
        if recipe.train.dropfilter.plus:
            return Extras(noised=True)
        return Extras(slots=1, temporaries=1)

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """Its key."""
        return f"train.dropfilter.rate = {recipe.train.dropfilter.rate:g}"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that there are filters."""
        from fedhp.model.position_noise import has_convolutions

        arch = recipe.architecture
        if not has_convolutions(arch.build(arch.layout.widths)):
            raise ScenarioError(
                f"{cls.said(recipe)} drops elements of convolutions' filters, and the model has no "
                f"convolution; leave it out, or choose another model.name"
            )

    def __init__(self) -> None:
        self._num_steps = 0
        self._whole: dict[str, torch.Tensor] = {}  # filters as they are, while some elements are dropped

    @property
    def key(self) -> Hashable:
        """Which it is; in the first step, there are no averages of others yet beside what it makes."""
        return self.name, self._num_steps == 0

    def begin(self, run: ClientRun) -> None:
        """Finds the filters, or begins to listen to what convolutions say."""
        import torch

        from fedhp.model.position_noise import CONVOLUTIONS, PositionNoise, standard_normal

        config, modules = run.recipe.train.dropfilter, run.module.named_modules()
        self._rate = config.rate
        self._names = [f"{name}.weight" for name, layer in modules if isinstance(layer, CONVOLUTIONS)]
        self._source = torch.Generator(run.device)
        self._noise = None
        if config.plus:
            draw = partial(standard_normal, generator=self._source)
            self._noise = PositionNoise(run.module, self._rate, draw)

    def kept(self) -> Mapping[str, Any]:
        """Returns how many steps it has seen, by which elements are drawn."""
        return {"steps": self._num_steps}

    def take_up(self, run: ClientRun, kept: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._num_steps = int(kept["steps"])

    def before_step(self, run: ClientRun) -> None:
        """Drops elements."""
        self._seed(run)
        if self._noise is not None:
            return
        parameters = dict(run.module.named_parameters())
        for name, factors in self._factors(parameters):
            weight = parameters[name].detach()
            self._whole[name] = weight.clone()
            weight.mul_(factors)

    def on_gradients(self, run: ClientRun) -> None:
        """Puts filters back, and gives what was dropped no gradient."""
        if self._noise is not None:
            return
        self._seed(run)
        parameters, trained = dict(run.module.named_parameters()), dict(run.part[0].named_parameters())
        for name, factors in self._factors(parameters):
            parameters[name].detach().copy_(self._whole.pop(name))
            grad = trained[name].grad
            if grad is not None:
                grad.mul_(factors[tuple(map(slice, grad.shape))])

    def after_step(self, run: ClientRun) -> None:
        """Counts the step."""
        self._num_steps += 1

    def end(self, run: ClientRun) -> None:
        """Listens no more."""
        if self._noise is not None:
            self._noise.close()

    def _seed(self, run: ClientRun) -> None:
        labels = run.task.round, run.task.client, self._num_steps
        self._source.manual_seed(derive(run.recipe.seed, self.name, *labels))

    def _factors(self, parameters: "Mapping[str, torch.Tensor]") -> "Iterator[tuple[str, torch.Tensor]]":
        """Yields what each filter is multiplied by in this step, drawn anew from its seed."""
        import torch

        for name in self._names:
            # In the order of entries, not of memory: a filter that was cut may lie otherwise than one as new.
            kept = torch.empty(parameters[name].shape, device=parameters[name].device)
            kept.bernoulli_(1 - self._rate, generator=self._source).div_(1 - self._rate)
            yield name, kept
