"""The operator library `edm_fast`: schemas live beside their ops, this is the object they are defined on."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("edm_fast", "DEF")
