"""The networks that are timed on the CPU, with what, and the ratios that are wanted. Knows no torch but in `specs`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rows import ERROR_BOUNDS, NETWORKS

if TYPE_CHECKING:
    from variants import Spec

CONTIGUOUS, LAST = "eager contiguous", "eager channels-last"
COMPILED, FROZEN = "compiled channels-last", "frozen channels-last"
_KINDS = {CONTIGUOUS: "eager", LAST: "eager", COMPILED: "compiled", FROZEN: "frozen"}
MEMORY_ROWS = (("digits", "1"), ("digits", "64"), ("ddpmpp", "1"), ("ddpmpp", "8"), ("adm", "1"))


@dataclass(frozen=True)
class NetworkRow:
    """One network, batch size and storage type.

    Attributes:
        peers: eager and compiled variants; `long_peers` are those for which it takes --long.
        rounds: at the most.
        quick: measured without --full too, without what compiles.
        long: measured only with --long.
        targets: the ratio that is wanted over the fastest of the peers whose name begins with the key.
    """

    network: str
    batch: int
    dtype: str
    peers: tuple[str, ...]
    rounds: int
    long_peers: tuple[str, ...] = ()
    isa: str = "native"
    quick: bool = False
    long: bool = False
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{NETWORKS[self.network]}, {self.batch}, {self.dtype}{', AVX2' if self.isa == 'avx2' else ''}"

    @property
    def bound(self) -> float:
        return ERROR_BOUNDS[self.dtype]

    @property
    def single(self) -> bool:
        """Whether a turn is one forward, and none warms up."""
        return self.network != "digits" and self.batch > 1

    @property
    def checked(self) -> int:
        """How many images are compared with float64."""
        return self.batch if self.network == "digits" else min(self.batch, 2)

    def specs(self, full: bool, long: bool) -> dict[str, Spec]:
        """Variants by name, ours first: a build that has nothing to time says so at once."""
        from variants import Spec

        common = {"dtype": self.dtype, "isa": self.isa}
        specs = {"ours": Spec(self.network, self.batch, "ours", **common)}
        for name in self.peers + (self.long_peers if long else ()):
            if full or _KINDS[name] == "eager":
                layout = "contiguous" if name == CONTIGUOUS else "channels_last"
                specs[name] = Spec(self.network, self.batch, _KINDS[name], memory_format=layout, **common)
        return specs


def network_rows() -> list[NetworkRow]:
    """All presets at batch 1, 8 and 64, in float32 and bfloat16.

    A compiler takes minutes for a large network, so that without --long only DDPM++ at batch 1 is compiled.
    """
    eager, compilers = (CONTIGUOUS, LAST), (COMPILED, FROZEN)
    rows = []
    for dtype in ("float32", "bfloat16"):
        plain = dtype == "float32"
        for batch in (1, 8, 64):
            compiled, later = (compilers, ()) if batch != 8 else ((), compilers)
            wanted = {"eager": 5.0, "frozen": 2.0} if plain and batch != 8 else {}
            rows.append(
                NetworkRow("digits", batch, dtype, eager + compiled, 15, later, quick=batch == 1, targets=wanted)
            )
        wanted = {"eager": 2.8, "frozen": 2.3} if plain else {"frozen": 1.9}
        for network in ("ddpmpp", "ncsnpp"):
            first = network == "ddpmpp"
            compiled = (compilers if plain else (FROZEN,)) if first else ()
            later = () if first else (FROZEN,)
            quick = first and plain
            rows.append(NetworkRow(network, 1, dtype, eager + compiled, 9, later, quick=quick, targets=wanted))
            rows.append(NetworkRow(network, 8, dtype, eager, 5, (FROZEN,), targets=wanted))
            rows.append(NetworkRow(network, 64, dtype, (LAST,), 1))
        wanted = {"eager": 2.4, "frozen": 2.0} if plain else {"frozen": 1.6}
        rows.append(NetworkRow("adm", 1, dtype, eager, 5, (FROZEN,), targets=wanted))
        rows.append(NetworkRow("adm", 8, dtype, (LAST,), 1))
        rows.append(NetworkRow("adm", 64, dtype, (LAST,), 1, long=True))
    rows.append(NetworkRow("ddpmpp", 1, "float32", eager, 5, isa="avx2", targets={"eager": 2.0}))
    return rows
