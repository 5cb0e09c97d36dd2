"""What the page on evaluation shows runs, in its order, and gives what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from edm_fast.cli import main
from edm_fast.evaluation import Evaluation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = []
    for line in "".join(blocks("bash")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "edm-fast"
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        outputs.append(result.stdout)
    made, _, folder, written, from_file = outputs
    names = dict(line.split(maxsplit=1) for line in made.splitlines())
    table = PAGE.read_text().split("\n\n")[3]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == ["frechet_distance", "precision", "recall"]
    assert {"frechet_distance", "precision", "recall"} < set(names)
    expected = f"{json.loads(folder)['frechet_distance']:.6g}"
    assert names["frechet_distance"] == expected
    assert written == ""
    assert f"frechet_distance  {expected}\n" in from_file


def test_the_python_example(capsys):
    names: dict = {}
    [source] = blocks("python")
    exec(compile(source, "example", "exec"), names)
    assert isinstance(names["result"], Evaluation)
    assert capsys.readouterr().out.split() == [
        str(value) for value in (names["result"].frechet_distance, names["result"].precision, names["result"].recall)
    ]
