"""Steps of several clients in one computation: networks of one shape whose parameters lie side by side."""

import math
from collections.abc import Sequence
from functools import cache

import torch

from fedhp.data.ahead import Ahead, Source
from fedhp.errors import TrainingError
from fedhp.model.dense import Batch, Loss, Take
from fedhp.model.gradients import chain_gradients
from fedhp.model.modules import rows_like
from fedhp.model.optimizer import drop_gradients
from fedhp.training.optimizers import descend
from fedhp.training.options import MOMENTUM
from fedhp.training.session import Judged, Session, guarded

Tensors = list[torch.Tensor]


class Stack:
    """Networks, one client's each, as rows of common tensors: a lone client's, if dense, is a stack of one.

    A client's module and optimiser, where somebody looks at them, view its row, so that methods look at one
    client, and act on it, as if it were alone. Forward and backward pass are one computation for all
    (`fedhp.model.side_by_side`), and so is the update where it is SGD's; the others change what becomes of a
    row by rounding at most.

    Args:
        members: The clients: their networks have a form and are of one shape, their batches of one size.
    """

    def __init__(self, members: Sequence[Session]) -> None:
        self._members = tuple(members)
        run, train = members[0].run, members[0].run.recipe.train
        if len(members) == 1:
            # Last bits may depend on where tensors begin in memory: as on a device, whatever it lay beside.
            run.part_from_others()
        self._form = members[0].form
        self._updates_all = train.optimizer == "sgd" and not train.weight_decay
        self._momentum = train.momentum if self._updates_all else 0.0
        has_momentum = self._momentum > 0
        self._tensors, self._velocities = _unseen(members, has_momentum) or _beside(members, has_momentum)
        # Without momentum, an update within the product is rounded otherwise than one by a gradient: then
        # what anybody ever looks at decides, not what the next step is to show.
        acts = any(method.acts_on_gradients() for method in run.methods)
        within = self._updates_all and (self._momentum > 0 or not acts)
        self._updates_within = within and members[0].is_dense
        self._shows_gradients = acts or not self._updates_all
        self._mask, self._ahead = _mask(members), Ahead()
        # Each member's, where somebody looks at its module: a method of the user's own may move them.
        self._parameters = [
            [] if member.run.unseen and not self._shows_gradients else _parameters(member)
            for member in members
        ]
        self._starts = [*map(_starts, self._parameters)]

    def stay(self) -> None:
        """Is to take the next steps too, as long as all tensors lie where they do."""
        for member in self._members:
            member.stack, member.run.is_beside = self, True

    def holds(self, members: Sequence[Session]) -> bool:
        """Says whether these are its first members, and their tensors still lie here."""
        number = len(members)
        return self._members[:number] == tuple(members) and all(map(self._holds, range(number)))

    def _holds(self, place: int) -> bool:
        member, parameters = self._members[place], self._parameters[place]
        is_here = (
            member.stack is self and member.run.is_beside and bool(member.run.unseen) != bool(parameters)
        )
        return is_here and self._starts[place] == _starts(parameters)

    def step(self, members: Sequence[Session], rates: Sequence[float]) -> Judged:
        """Takes a step of its first members, at the learning rate of each."""
        number = len(members)
        tensors = [tensor[:number] for tensor in self._tensors]
        velocities = [tensor[:number] for tensor in self._velocities]
        mask = self._mask[:number] if self._mask is not None else None
        loss = Loss(mask, members[0].run.recipe.train.label_smoothing)
        batch = Batch(*self._samples(members), [len(member.rows) for member in members], loss)
        if not self._updates_within or any(member.wants_gradients for member in members):
            assert self._form is not None
            losses, right, grads = self._form.gradients(tensors, batch)
            self._act(members, grads)
            self._update(members, tensors, velocities, grads, rates)
        else:
            guard = members[0].client.guard
            take = _push(velocities, self._momentum) if velocities else _move(tensors, rates)
            losses, right, _ = chain_gradients(tensors, batch, take if guard is None else guard.noting(take))
            if velocities:
                descend(tensors, velocities, rates)
        return losses.tolist(), right.tolist()

    def _samples(self, members: Sequence[Session]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, run = members[0].epoch, members[0].run

        def sources() -> list[Source]:
            return [
                Source(one.run.shard, one.order[one.epoch.done :], one.run.steps.inputs) for one in members
            ]

        taken = self._ahead.take((epoch.number, epoch.done), run.steps.batch, len(members), sources)
        samples, labels = taken if run.device.type == "cpu" else (part.to(run.device) for part in taken)
        return samples, labels

    def _act(self, members: Sequence[Session], grads: list[torch.Tensor]) -> None:
        """Shows each member its gradients."""
        norms = cache(lambda: [torch.linalg.vector_norm(grad.flatten(1), dim=1).tolist() for grad in grads])
        for place, member in enumerate(members):
            own = [grad[place] for grad in grads] if self._shows_gradients else []
            parameters = self._parameters[place] if self._shows_gradients else []
            for parameter, grad in zip(parameters, own, strict=True):
                parameter.grad = grad
            with guarded(member):
                member.on_gradients(lambda place=place: math.hypot(*(norm[place] for norm in norms())))
                for parameter, grad in zip(parameters, own, strict=True):
                    if parameter.grad is not grad:
                        _put_there(grad, parameter.grad)

    def _update(
        self,
        members: Sequence[Session],
        tensors: Tensors,
        velocities: Tensors,
        grads: Tensors,
        rates: Sequence[float],
    ) -> None:
        for velocity, grad in zip(velocities, grads, strict=False):
            velocity.mul_(self._momentum).add_(grad)
        if self._updates_all:
            descend(tensors, velocities or grads, rates)
        for member in members if self._shows_gradients else ():
            if not self._updates_all:
                member.run.optimizer.step()
            drop_gradients(member.run.optimizer)


def _put_there(grad: torch.Tensor, other: torch.Tensor | None) -> None:
    """Takes over what a method of the user's own has put in the place of a gradient.

    Raises:
        TrainingError: If that is nothing: a step of many clients is one of all parameters.
    """
    if other is None:
        raise TrainingError(
            "a client method took a gradient away (grad = None), which only clients trained one by one do "
            "without; leave out stackable = True in its class, or fill the gradient with zeros"
        )
    grad.copy_(other)


def _parameters(member: Session) -> list[torch.nn.Parameter]:
    return list(member.run.module.parameters())


def _starts(parameters: Sequence[torch.Tensor]) -> list[int]:
    return [parameter.data_ptr() for parameter in parameters]


def _unseen(members: Sequence[Session], has_momentum: bool) -> tuple[Tensors, Tensors] | None:
    """Returns parameters and momenta that lie beside each other as they came; None for others.

    Those of clients whose modules nobody has looked at yet are nowhere else.
    """
    places = [row for row in (one.run.unseen for one in members) if row is not None]
    if len(places) < len(members):
        return None
    rows, first = places[0]
    if any(place != (rows, first + number) for number, place in enumerate(places)):
        return None
    some = slice(first, first + len(places))
    velocities = rows.velocities() if has_momentum else []
    return [tensor[some] for tensor in rows.tensors], [velocity[some] for velocity in velocities]


def _beside(members: Sequence[Session], has_momentum: bool) -> tuple[Tensors, Tensors]:
    """Returns parameters and momenta of clients, beside each other from now on."""
    by_parameter = [*zip(*map(_parameters, members), strict=True)]
    velocities = [_velocities(members, rows) for rows in by_parameter] if has_momentum else []
    return [_common(rows) for rows in by_parameter], velocities


def _common(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns a tensor of which parameters are the rows from now on; of a lone one, a view."""
    if len(rows) == 1:
        return rows[0].detach().unsqueeze(0)
    if _lie_beside(rows):
        return rows[0].detach().as_strided((len(rows), *rows[0].shape), (rows[0].numel(), *rows[0].stride()))
    common = rows_like(rows[0], len(rows))
    for row, own in zip(rows, common, strict=True):
        row.data = own.copy_(row.detach())
    return common


def _lie_beside(rows: Sequence[torch.Tensor]) -> bool:
    """Says whether tensors are the rows of one already."""
    whole, num_bytes = rows[0].untyped_storage(), rows[0].nbytes
    start = whole.data_ptr()  # or the last could be another tensor's, which happens to follow in memory
    return whole.nbytes() == len(rows) * num_bytes and all(
        row.data_ptr() == start + place * num_bytes for place, row in enumerate(rows)
    )


def _velocities(members: Sequence[Session], rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Does the same with what optimisers keep of the parameters."""
    kept = [member.run.optimizer.state[row] for member, row in zip(members, rows, strict=True)]
    if len(rows) == 1:
        return kept[0][MOMENTUM].unsqueeze(0)
    common = rows_like(rows[0], len(rows))
    for own, row in zip(kept, common, strict=True):
        own[MOMENTUM] = row.copy_(own[MOMENTUM])
    return common


def _mask(members: Sequence[Session]) -> torch.Tensor | None:
    """Returns what is added to the logits, of shape ``(K, 1, classes)``; None for nothing."""
    masks = [member.run.mask for member in members]
    some = next((mask for mask in masks if mask is not None), None)
    if some is None:
        return None
    if len(masks) == 1:
        return some[None, None]
    return torch.stack([torch.zeros_like(some) if mask is None else mask for mask in masks])[:, None]


def _push(velocities: Tensors, momentum: float) -> Take:
    """Adds gradients to what is left of the momenta as they are worked out: none is ever in memory."""

    def take(place: int, flow: torch.Tensor, inputs: torch.Tensor) -> None:
        weights, biases = velocities[2 * place : 2 * place + 2]
        weights.baddbmm_(flow.transpose(1, 2), inputs, beta=momentum)
        biases.mul_(momentum).add_(flow.sum(1))

    return take


def _move(tensors: Tensors, rates: Sequence[float]) -> Take:
    """Takes a step of plain SGD as gradients are worked out."""
    alike = len({*rates}) == 1
    each = rates[0] if alike else torch.tensor(rates, device=tensors[0].device)[:, None, None]

    def take(place: int, flow: torch.Tensor, inputs: torch.Tensor) -> None:
        weights, biases = tensors[2 * place : 2 * place + 2]
        flow.mul_(each)
        weights.baddbmm_(flow.transpose(1, 2), inputs, alpha=-1)
        biases.sub_(flow.sum(1))

    return take
