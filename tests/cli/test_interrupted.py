"""edm-fast generate under kill -9 and with ranks that die: in the end the files of an uninterrupted run, each once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked_commands import LIMIT_S, Commands, Run, forked_commands
from steps_of_writing import die, note
from tiny_networks import tiny

from edm_fast.checkpoints import save_network

SEEDS = range(60)
FEW = range(3)
KILLS = 40


class Generate:
    """Starts runs of `edm-fast generate` with settings of their own, and knows what they must leave."""

    def __init__(self, commands: Commands, network: Path, whole: Path) -> None:
        self._commands = commands
        self._settings = ["--network", str(network), "--steps", "2", "--batch", "2"]
        started = time.monotonic()
        assert self.start(whole).status() == 0
        self.duration_s = time.monotonic() - started
        self._whole = {path.name: path.read_bytes() for path in whole.glob("*.png")}
        assert sorted(self._whole) == [f"{seed:06d}.png" for seed in SEEDS]
        assert len(set(self._whole.values())) == len(SEEDS)

    def arguments(self, out: Path, seeds: range = SEEDS) -> list[str]:
        return ["generate", *self._settings, "--outdir", str(out), "--seeds", f"{seeds[0]}-{seeds[-1]}"]

    def start(
        self, out: Path, seeds: range = SEEDS, rank: int = 0, ranks: int = 1, first: Callable[[], None] | None = None
    ) -> Run:
        """One rank. It calls `first` at its beginning."""
        environment = {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
        return self._commands.start(*self.arguments(out, seeds), environment=environment, first=first)

    def finish(self, out: Path, seeds: range = SEEDS, ranks: int = 1) -> None:
        """A run that nothing disturbs must leave the files of one that nothing ever did."""
        for run in [self.start(out, seeds, rank, ranks) for rank in range(ranks)]:
            assert run.status() == 0, run.output
        self.check_complete(out, seeds)

    def check_complete(self, out: Path, seeds: range = SEEDS) -> None:
        assert self.made(out) == set(seeds)
        assert {path.name for path in out.iterdir() if path.suffix != ".png"} == {"manifest.jsonl"}
        hashes = {seed: hashlib.sha256(self._whole[f"{seed:06d}.png"]).hexdigest() for seed in seeds}
        assert set(notes(out)) == set(hashes.items())

    def made(self, out: Path) -> set[int]:
        """The seeds whose image is there. Whatever has the name of an image must be that image, and whole."""
        names = {path.name for path in out.glob("*.png")}
        for name in sorted(names):
            assert (out / name).read_bytes() == self._whole.get(name), f"{name} is not the uninterrupted run's"
        return {int(name.removesuffix(".png")) for name in names}


@pytest.fixture(scope="module")
def generate(tmp_path_factory) -> Iterator[Generate]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    save_network(tiny(channel_mult=[1], attn_resolutions=[]), folder / "tiny.safetensors")
    with forked_commands() as commands:
        yield Generate(commands, folder / "tiny.safetensors", folder / "out")


def notes(out: Path) -> Iterator[tuple[int, str]]:
    """Seed and hash of the images in the manifest. A line may be cut short, or about something else."""
    for line in (out / "manifest.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError, KeyError):
            record = json.loads(line)
            yield record["seed"], record["sha256"]


def count_images(out: Path) -> int:
    return len(list(out.glob("*.png")))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not so after {LIMIT_S} s"
        time.sleep(0.001)


def killed(run: Run) -> bool:
    """Whether the run was killed; nothing else may have stopped it."""
    status = run.status()
    assert status in (0, -signal.SIGKILL), run.output
    return status != 0


def killed_at_random(generate: Generate, out: Path, moments: random.Random) -> bool:
    """Whether a kill, anywhere in the run or after it has made one to four images, found it alive."""
    more = moments.randrange(5)
    wanted = count_images(out) + more
    delay_s = moments.random() * generate.duration_s / (20 if more else 1)
    run = generate.start(out)
    wait_for(lambda: count_images(out) >= wanted or run.ended())
    time.sleep(delay_s)
    run.kill()
    return killed(run)


def test_forty_kills_at_random_moments_tear_and_lose_nothing(generate, tmp_path):
    moments = random.Random(0)
    kills = kills_while_going_on = 0
    for folder in range(40):
        out = tmp_path / str(folder)
        for _ in range(8):
            before = count_images(out)
            if not killed_at_random(generate, out, moments):
                break
            kills += 1
            kills_while_going_on += 0 < before < len(generate.made(out))
        generate.finish(out)
        if kills >= KILLS:
            break
    assert kills >= KILLS
    assert kills_while_going_on >= KILLS / 4


def kill_at_every_step(generate: Generate, folder: Path, begin: Callable[[Path], object]) -> list[str]:
    """Kills runs before each step and halfway through each write; the names of the steps.

    `begin` makes what a run finds. See steps_of_writing for why these moments stand for all.
    """
    begin(folder / "noted")
    run = generate.start(folder / "noted", FEW, first=functools.partial(note, folder / "steps"))
    assert run.status() == 0, run.output
    steps = (folder / "steps").read_text().split()
    moments = [(number, False) for number in range(len(steps))]
    moments += [(number, True) for number, name in enumerate(steps) if name == "write"]
    for number, halfway in moments:
        out = folder / f"{number} {halfway}"
        begin(out)
        try:
            assert killed(generate.start(out, FEW, first=functools.partial(die, number, halfway=halfway)))
            generate.made(out)
            generate.finish(out, FEW)
        except AssertionError as error:
            place = "halfway through" if halfway else "before"
            raise AssertionError(f"killed {place} step {number} of {steps}") from error
    return steps


def test_a_kill_at_any_step_of_writing_tears_and_loses_nothing(generate, tmp_path):
    steps = kill_at_every_step(generate, tmp_path, begin=lambda out: None)
    assert steps.count("replace") == len(FEW)
    assert steps.count("fsync") == steps.count("write") > len(FEW)


def test_a_kill_at_any_step_of_going_on_after_a_kill_tears_and_loses_nothing(generate, tmp_path):
    def begin(out: Path) -> None:
        assert killed(generate.start(out, FEW, first=functools.partial(die, 1, of=["replace"])))
        assert generate.made(out) == {0}
        assert list(out.glob(".000001.png.*")), "there is a temporary file to clean up"

    assert "unlink" in kill_at_every_step(generate, tmp_path, begin)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_others_finish_without_a_rank_that_dies_and_any_number_fill_the_gap(generate, tmp_path, ranks):
    dying = functools.partial(die, 4, of=["replace"])
    runs = [generate.start(tmp_path, rank=rank, ranks=3, first=dying if rank == 1 else None) for rank in range(3)]
    assert [killed(run) for run in runs] == [False, True, False]
    assert generate.made(tmp_path) == {seed for seed in SEEDS if seed % 3 != 1} | {1, 4, 7, 10}
    generate.finish(tmp_path, ranks=ranks)


@contextlib.contextmanager
def torchrun(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Two ranks, which need no network but the machine's own address."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "edm_fast", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=log.parent, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()  # it ends its ranks, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait(10)


def test_torchrun_makes_the_files_of_one_process(generate, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    with torchrun(generate.arguments(out), log) as process:
        assert process.wait(LIMIT_S) == 0, log.read_text()
    generate.check_complete(out)


def test_a_rank_of_torchrun_that_dies_tears_and_loses_nothing(generate, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    with torchrun(generate.arguments(out), log) as process:
        wait_for(lambda: rank_of(out, 1) is not None or process.poll() is not None)
        pid = rank_of(out, 1)
        assert pid is not None, log.read_text()
        wait_for(lambda: len(odd(out.glob("*.png"))) >= 3 or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        os.kill(pid, signal.SIGKILL)
        assert process.wait(LIMIT_S) != 0
    assert f"(pid: {pid})" in log.read_text(), "torchrun names the rank that died"
    generate.made(out)
    assert len(odd(out.glob("*.png"))) < len(SEEDS) / 2
    generate.finish(out)


def odd(images: Iterator[Path]) -> list[Path]:
    """Those of rank 1 of 2."""
    return [image for image in images if int(image.stem) % 2 == 1]


def rank_of(out: Path, rank: int) -> int | None:
    """The process id of the rank that torchrun has started for `out`."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
            if str(out).encode() in command and f"RANK={rank}".encode() in environment:
                return int(process.name)
    return None
