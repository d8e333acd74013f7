"""Item embeddings, generated or read from a file, and the fingerprint that names them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slaterl.bounds import Count, File, Positive, TorchSeed
from slaterl.errors import UserError


def item_embeddings(
    *, num_items: Count, num_topics: Count, topic_size: Count, peakedness: Positive, seed: TorchSeed, path: File | None
) -> Tensor:
    """Read item embeddings E [N, D] from `path`, or generate them without one; D = num_topics * topic_size.

    Args:
        peakedness: exponent p of the generator. 1 spreads an item over its topics ("diffuse"), larger values
            concentrate it ("focused").
        seed: seed of the generator. The items belong to the environment, so this is not the seed of a run.
        path: a .pt file (one tensor, loaded with weights_only), an .npy file, or a .safetensors file with one tensor.

    Raises:
        UserError: the file is missing, is not one finite float matrix, or has another shape than [N, D].
    """
    if path is None:
        generated = generate(num_items, num_topics, topic_size, peakedness, seed)
        if not generated.isfinite().all():
            raise UserError(f"env.item_embeddings.peakedness={peakedness}: so large that items become zero in float32")
        return generated
    return read(path, shape=(num_items, num_topics * topic_size))


def generate(num_items: int, num_topics: int, topic_size: int, peakedness: float, seed: int) -> Tensor:
    """Generate rows of unit norm [N, D] in the direction of (topic weight * topic components) ** peakedness.

    Deffayet et al. 2023, section 5.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(num_items, num_topics, generator=generator)
    weights = weights / weights.sum(1, keepdim=True)
    components = topic_components(num_items, num_topics, topic_size, generator)
    rows = (weights.unsqueeze(2) * components).pow(peakedness).flatten(1)
    return rows / rows.norm(dim=1, keepdim=True)


def topic_components(count: int, num_topics: int, topic_size: int, generator: torch.Generator) -> Tensor:
    """Draw |N(0, 0.4^2)| capped at 1, [count, K, z]: positions of items or users inside each topic."""
    normal = torch.randn(count, num_topics, topic_size, generator=generator, device=generator.device)
    return (0.4 * normal).abs().clamp_(max=1.0)


def read(path: str, shape: tuple[int, int]) -> Tensor:
    """Read one float matrix of the given shape from a .pt, .npy or .safetensors file."""
    where = f"env.item_embeddings.path={path}"
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{where}: no such file")
    try:
        if file.suffix == ".pt":
            found = torch.load(file, map_location="cpu", weights_only=True)
        elif file.suffix == ".npy":
            found = torch.from_numpy(np.load(file, allow_pickle=False))
        elif file.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(file)
            if len(tensors) != 1:
                raise UserError(f"{where}: expected one tensor, found {sorted(tensors)}")
            found = next(iter(tensors.values()))
        else:
            raise UserError(f"{where}: expected a .pt, .npy or .safetensors file")
    except UserError:
        raise
    except Exception as error:  # each reader has its own exceptions for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "Weights only load failed" in reason:  # torch adds advice that does not apply here
            reason = "it holds classes other than plain tensors"
        raise UserError(f"{where}: cannot be read ({reason})") from error
    if not isinstance(found, Tensor):
        raise UserError(f"{where}: expected a tensor, found {type(found).__name__}")
    if odd := _oddity(found):
        raise UserError(f"{where}: expected a dense tensor of floats, found {odd}")
    if tuple(found.shape) != shape or not found.is_floating_point():
        raise UserError(
            f"{where}: found {list(found.shape)} {found.dtype}, expected {list(shape)} floats "
            "[env.num_items, env.num_topics * env.topic_size]"
        )
    found = found.detach().to(torch.float32).contiguous()
    if not torch.isfinite(found).all():
        raise UserError(f"{where}: {int((~torch.isfinite(found)).sum())} of its values are not finite")
    return found


def _oddity(tensor: Tensor) -> str | None:
    """Say why a tensor is no plain matrix; None for strided views and tensors that require gradients."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:  # it has no shape
        return "a nested one"
    if tensor.is_quantized:
        return f"a quantised one ({tensor.dtype})"
    if tensor.layout != torch.strided:
        return f"one of layout {tensor.layout}"
    if tensor.is_meta:
        return "one on the meta device, which has no values"
    return None


def fingerprint(embeddings: Tensor) -> str:
    """Return 16 hex digits that change with any bit of the embeddings."""
    array = embeddings.detach().cpu().contiguous().numpy()
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()[:16]
