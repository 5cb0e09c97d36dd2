"""A bounded run of the fuzzer; `.ci/run` has it read 200,000."""

from __future__ import annotations

from checkpoints import fuzz_reader

COUNT = 2_000


def test_mutated_files_are_read_or_refused(record_property):
    outcomes = fuzz_reader.fuzz(COUNT, seed=1)
    record_property("inputs", COUNT)
    record_property("outcomes", dict(outcomes))
    print(f"{COUNT} inputs: {dict(outcomes)}")  # noqa: T201
    assert outcomes["well-formed: read"] == len(fuzz_reader.seeds())
    assert outcomes["read"] + outcomes["refused"] == COUNT
    assert min(outcomes["read"], outcomes["refused"]) > COUNT // 50
