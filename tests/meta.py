"""Torch's meta device, whose tensors have shapes and types but no numbers. Tests use it in place of a GPU.

To read a number from it is an error, and so are most operations between it and the CPU. `OnMeta` forbids the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slaterl.data.trajectories import Trajectories
from slaterl.training.learner import Learner

META = torch.device("meta")
COPIES = (torch.tensor, torch.as_tensor, Tensor.new_tensor)  # a GPU waits for them, unlike full and arange

T = TypeVar("T")


class Stream(torch.Generator):
    """A random stream of the meta device, which has none of its own. `OnMeta` understands it."""

    device = META


class OnMeta(TorchFunctionMode):
    """Inside the block, every tensor must be on the meta device, and every draw must come from a `Stream`.

    A single number may be on the CPU, because a GPU takes it without waiting.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        generator = kwargs.pop("generator", None)
        assert generator is None or isinstance(generator, Stream), f"{func} draws from a stream of the CPU"
        result = func(*args, **kwargs)
        made = tensors_in(result)
        for tensor in (*tensors_in(args), *tensors_in(list(kwargs.values())), *made):
            assert tensor.device == META or (tensor.ndim == 0 and generator is None), f"{func}: {tensor.device}"
        assert func not in COPIES or all(tensor.device != META for tensor in made), f"{func} copies from the CPU"
        return result


def tensors_in(value: Any) -> list[Tensor]:
    """List the tensors among arguments or results, also in a list or an index."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, list | tuple) else []


def to_meta(thing: T) -> T:
    """Move a tensor, trajectories, a module or any other object with its attributes to the meta device.

    Objects are changed in place, and an optimiser keeps its parameters.
    """
    if isinstance(thing, Tensor):
        return torch.empty_like(thing, device=META)  # type: ignore[return-value]
    if isinstance(thing, Trajectories):
        return thing.to(META)  # type: ignore[return-value]
    if isinstance(thing, nn.Module):
        # Without this, the move would replace the parameters, and the optimisers would keep those of the CPU.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            thing.to(META)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        if isinstance(thing, Learner):
            thing.generators = {name: Stream() for name in thing.generators}
            for optimizer in thing.optim.values():
                for group in optimizer.param_groups:
                    group["fused"] = False  # the fused kernel refuses this device; the plain steps do not
        return thing
    for name, value in vars(thing).items():
        if isinstance(value, torch.Generator):
            setattr(thing, name, Stream())
        elif isinstance(value, torch.device):
            setattr(thing, name, META)
        elif isinstance(value, Tensor | nn.Module):
            setattr(thing, name, to_meta(value))
    return thing


def check_learns(learner: Learner, batches: Iterable[Any]) -> int:
    """Update a learner on the meta device with each batch, and return how many there were."""
    count = 0
    for batch in batches:
        learner.training_step(batch, count)
        count += 1
        assert learner.meter.sums is not None
        assert learner.meter.sums.device == META and learner.meter.sums.shape == (len(learner.TERMS),)
    for name, parameter in learner.named_parameters():
        assert parameter.device == META, name
    return count
