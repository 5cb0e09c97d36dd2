"""Without the package diffusers, importing edm_fast.compat.diffusers says how to get it."""

from __future__ import annotations

import importlib
import sys

import pytest


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "edm_fast.compat.diffusers", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'edm-fast\[diffusers\]'"):
        importlib.import_module("edm_fast.compat.diffusers")
