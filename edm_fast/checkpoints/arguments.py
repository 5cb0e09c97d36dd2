"""Constructor arguments that a file recorded: checked one by one before a network is built of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from edm_fast.networks import EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond

CLASSES: dict[str, type[Precond]] = {
    "EDMPrecond": EDMPrecond,
    "VEPrecond": VEPrecond,
    "VPPrecond": VPPrecond,
    "iDDPMPrecond": iDDPMPrecond,
}

# What each recorded argument may be. The bounds are far above any real network, and low enough that building one on
# the meta device takes neither noticeable time nor memory.
_INTEGERS = {
    "img_resolution": (1, 16384),
    "img_channels": (1, 4096),
    "label_dim": (0, 1_000_000),
    "M": (2, 10_000),
    "augment_dim": (0, 4096),
    "model_channels": (1, 16384),
    "channel_mult_emb": (1, 64),
    "channel_mult_noise": (1, 64),
    "num_blocks": (0, 64),
}
_NUMBERS = {
    "beta_d",
    "beta_min",
    "epsilon_t",
    "C_1",
    "C_2",
    "sigma_data",
    "sigma_min",
    "sigma_max",
    "dropout",
    "label_dropout",
}
_LISTS = {"channel_mult": (1, 16), "attn_resolutions": (0, 16), "resample_filter": (1, 64)}
_STRINGS = {"model_type", "embedding_type", "encoder_type", "decoder_type"}
# Of a block: two convolutions, two normalisations and the embedding, a weight and a bias each.
_LEAST_KEYS = 10


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def check_argument(name: str, value: Any) -> None:
    """ValueError, naming the argument, for a name that no constructor has and for a value out of its bounds."""
    if name in _INTEGERS:
        low, high = _INTEGERS[name]
        wanted = f"an integer from {low} to {high}"
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    elif name in _NUMBERS:
        wanted = "a number from 0 up" + ("" if name == "sigma_max" else ", finite")
        good = _is_number(value) and value >= 0 and (math.isfinite(value) or name == "sigma_max")
    elif name in _LISTS:
        low, high = _LISTS[name]
        wanted = f"a list of {low} to {high} numbers from 0 to 16384"
        good = isinstance(value, list) and low <= len(value) <= high
        good = good and all(_is_number(item) and 0 <= item <= 16384 for item in value)
        if name != "resample_filter":
            good = good and all(isinstance(item, int) for item in value)
    elif name in _STRINGS:
        wanted = "a string"
        good = isinstance(value, str)
    elif name == "use_fp16":
        wanted = "true or false"
        good = isinstance(value, bool)
    else:
        raise ValueError(f"init_kwargs holds an unknown argument {str(name)[:80]!r}")
    if not good:
        raise ValueError(f"init_kwargs: {name} must be {wanted}, but it is {str(value)[:80]}")


def build_network(class_name: str, init_kwargs: Mapping[str, Any], keys: int | None = None) -> Precond:
    """Build an untrained network of a class in the table from recorded constructor arguments.

    Under `torch.device('meta')` this allocates nothing. `keys`, if given, is the number of tensors that are there to
    fill it; a network of more blocks than that is not built. Raises ValueError for an unknown class, an argument that
    is unknown, missing, of the wrong type or out of bounds.
    """
    if class_name not in CLASSES:
        raise ValueError(f"class must be one of {', '.join(CLASSES)}, but it is {class_name[:80]!r}")
    for name, value in init_kwargs.items():
        check_argument(name, value)
    try:
        inspect.signature(CLASSES[class_name]).bind(**init_kwargs)
        blocks = len(init_kwargs.get("channel_mult", range(4))) * init_kwargs.get("num_blocks", 3)
        if keys is not None and blocks * _LEAST_KEYS > keys:
            raise ValueError(f"{blocks} blocks or more are asked for, but there are {keys} tensors")
        return CLASSES[class_name](**init_kwargs)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"init_kwargs do not build a {class_name}: {error}") from error
