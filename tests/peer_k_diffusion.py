"""k-diffusion's sampling module from an installed package, without the dozens of packages that it imports elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

# Imported by the module, or by what it imports, for functions that no sampler needs.
_UNUSED = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchdiffeq")


def sampling_module() -> ModuleType:
    """The module; skips the test, saying why, where it cannot be loaded."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    stubs = {name: _stub(name) for name in _UNUSED if name.split(".")[0] not in sys.modules}
    replaced = {"k_diffusion": package, **stubs}
    before = {name: sys.modules[name] for name in replaced if name in sys.modules}
    sys.modules.update(replaced)
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError as error:
        pytest.skip(f"k-diffusion's sampling module does not import here: {error}")
    finally:
        for name in [*replaced, *(name for name in sys.modules if name.startswith("k_diffusion."))]:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _stub(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    module.functional = module.odeint = None
    return module
