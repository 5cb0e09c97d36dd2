"""edm-fast tune: what it prints and writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch
from click.testing import CliRunner

from edm_fast.cli import main
from edm_fast.cli.tune import tune
from edm_fast.evaluation import Churn, Grid

QUICK = ("--ref", "digits", "--images", "70", "--sets", "2", "--steps", "3", "--S_churn", "0,0.5,1")
QUICK += ("--S_min", "0", "--S_max", "inf,1", "--S_noise", "1")


def invoke(*arguments, expect=0):
    result = CliRunner().invoke(main, ["tune", *map(str, arguments)])
    assert result.exit_code == expect, result.output
    return result


def error(*arguments, expect=2):
    return " ".join(invoke(*arguments, expect=expect).stderr.split()).replace('"', "'")


@pytest.fixture
def trials(monkeypatch):
    """The settings that images are made by, and the number after which the program is killed."""
    made: list[Churn] = []
    limits = [1000]
    module = tune.callback.__globals__["search_for_churn"].__globals__
    sampled = module["SampledImages"]

    def counted(net, seeds, labels, rgb, **options):
        if len(made) == limits[0]:
            raise KeyboardInterrupt
        made.append(Churn(*(options[name] for name in Churn._fields)))
        return sampled(net, seeds, labels, rgb, **options)

    monkeypatch.setitem(module, "SampledImages", counted)
    return made, limits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output of a run without interruption, and its file."""
    path = tmp_path_factory.mktemp("tune") / "trials.json"
    return invoke(*QUICK, "--output", path).stdout, path


def test_the_digits_run_and_the_best_is_what_the_file_says(finished):
    output, path = finished
    data = json.loads(path.read_text())
    means = [sum(trial["distances"]) / 2 for trial in data["trials"]]
    assert data["trials"][0] == {**Churn()._asdict(), "S_max": "inf", "distances": data["trials"][0]["distances"]}
    assert len({tuple(trial["distances"]) for trial in data["trials"]}) == len(means) == 5
    rows = [line.split() for line in output.splitlines()[1 : 1 + len(means)]]
    assert [float(row[4]) for row in rows] == pytest.approx(means, rel=1e-4)
    assert [row[-1] == "best" for row in rows] == [mean == min(means) for mean in means]
    assert [float(row[6]) for row in rows] == pytest.approx([mean - means[0] for mean in means], rel=1e-3, abs=1e-3)


def test_the_last_line_is_a_command_that_generates_by_the_best(finished, tmp_path):
    output, path = finished
    best = min(json.loads(path.read_text())["trials"], key=lambda trial: sum(trial["distances"]))
    program, *arguments = shlex.split(output.splitlines()[-1])
    assert program == "edm-fast"
    assert arguments[:3] == ["generate", "--steps", "3"]
    assert float(arguments[arguments.index("--S_churn") + 1]) == best["S_churn"]
    assert arguments[arguments.index("--S_max") + 1] == f"{float(best['S_max']):g}"
    result = CliRunner().invoke(main, [*arguments, "--seeds", "0", "--outdir", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("killed_at", [0, 1, 5])
def test_an_interrupted_search_goes_on_to_the_same_file(finished, tmp_path, trials, killed_at):
    made, limits = trials
    path = tmp_path / "trials.json"
    limits[0] = killed_at
    assert CliRunner().invoke(main, ["tune", *QUICK, "--output", str(path)]).exit_code != 0
    assert len(made) == killed_at
    made.clear()
    limits[0] = 1000
    assert invoke(*QUICK, "--output", path).stdout == finished[0]
    assert path.read_bytes() == finished[1].read_bytes()
    # Two sets of a trial; what was cut short within a trial is made again.
    assert len(made) == 10 - killed_at // 2 * 2
    assert [file.name for file in tmp_path.iterdir()] == ["trials.json"]


def test_a_finished_search_makes_no_image(finished, trials):
    made, _ = trials
    assert invoke(*QUICK, "--output", finished[1]).stdout == finished[0]
    assert made == []


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--steps", "4"), "num_steps is 3 there, 4 here"),
        (("--first-seed", "9"), "first_seed is 0 there, 9 here"),
        (("--class", "9"), "class is None there, 9 here"),
        (("--S_max", "inf"), "S_max is ['inf', 1.0] there, ['inf'] here"),
    ],
)
def test_a_file_of_other_settings_is_left_alone(finished, trials, options, difference):
    made, _ = trials
    before = finished[1].read_bytes()
    message = error(*QUICK, "--output", finished[1], *options, expect=1)
    assert "belongs to other settings" in message
    assert message.endswith(difference)
    assert finished[1].read_bytes() == before
    assert made == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": {}, "trials": [{"S_churn": 1}]}'])
def test_a_file_of_another_kind_is_left_alone(tmp_path, trials, text):
    path = tmp_path / "notes.json"
    path.write_text(text)
    assert "notes.json is not a file of edm-fast tune" in error(*QUICK, "--output", path, expect=1)
    assert path.read_text() == text
    assert trials[0] == []


def test_without_lists_the_grid_is_that_of_the_steps(monkeypatch):
    seen: list[Grid] = []

    def search(net, reference, extractor, *, grid, **_):
        seen.append(grid)
        raise ValueError("enough")

    monkeypatch.setitem(tune.callback.__globals__, "search_for_churn", search)
    error("--ref", "digits", "--steps", "40", "--S_noise", "1,1.01", expect=1)
    assert seen == [Grid(Grid.for_steps(40).S_churn, S_noise=(1, 1.01))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--ref'"),
        (("--ref", "nowhere"), "'--ref'"),
        (("--S_churn", "1,x"), "'--S_churn': '1,x' is not a list of numbers"),
        (("--S_churn", "-1"), "--S_churn: got -1"),
        (("--S_noise", "inf"), "--S_noise: got inf"),
        (("--S_min", "nan"), "--S_min: got NaN"),
        (("--images", "1"), "'--images'"),
        (("--sets", "0"), "'--sets'"),
        (("--class", "10"), "10 is not one of the classes 0 to 9"),
        (("--rho", "0.001"), "rho"),
        (("--weights", __file__), "--weights means nothing without"),
    ],
)
def test_bad_options_are_named_before_any_work(trials, arguments, message):
    ref = () if not arguments or arguments[0] == "--ref" else ("--ref", "digits")
    assert message in error(*ref, *arguments)
    assert trials[0] == []


def test_a_set_too_small_for_its_features_is_a_warning():
    options = ("--images", "10", "--sets", "1", "--steps", "1", "--S_churn", "0")
    result = invoke("--ref", "digits", *options)
    assert "warning: 10 images in a set are too few for a covariance of 64 features" in result.stderr
    assert "No churn is best" in result.stdout
    assert result.stdout.splitlines()[-1] == "edm-fast generate --steps 1"


def test_a_single_set_says_that_noise_is_unknown(tmp_path, tiny):
    """A colour network, features by TorchScript, a reference of statistics."""

    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.double().mean(dim=[2, 3])

    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    folder = tmp_path / "real"
    made = CliRunner().invoke(main, ["generate", "--network", str(tiny), "--seeds", "100-109", "--outdir", str(folder)])
    assert made.exit_code == 0, made.output
    common = ("--extractor", tmp_path / "means.pt", "--network", tiny, "--images", "5", "--sets", "1", "--steps", "2")
    lists = ("--S_churn", "0.4", "--S_min", "0", "--S_max", "inf", "--S_noise", "1")
    output = invoke("--ref", folder, *common, *lists).stdout
    assert len(output.splitlines()) == 5
    assert re.search(r"single set of seeds does not say|No churn is best", output)
    assert f"--network {tiny}" in output.splitlines()[-1]
