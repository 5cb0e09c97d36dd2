"""One variant in a process of its own, which does what the lines on its standard input say; see workers.py.

A process per variant: compiled variants share caches within a process, and settings such as the instruction set hold
for all of it. While it waits it reads a pipe, and no thread of it spins.

    {"warm": K, "run": N}   run K forwards, then N timed ones; answers their seconds
    {"output": PATH}        save F as float64 for comparison
    {"memory": true}        answer the bytes of activations and weights

Run: python worker.py SPEC, with SPEC the JSON of variants.Spec; the answers are lines of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

import torch
from variants import NotAvailableError, Spec, Variant, build, memory

from edm_fast.bench import keep_memory


def answer(variant: Variant, command: dict[str, Any]) -> dict[str, Any]:
    if "run" in command:
        for _ in range(command["warm"]):
            variant.forward()
        return {"seconds": [_seconds(variant) for _ in range(command["run"])]}
    if "output" in command:
        torch.save(variant.forward().double().contiguous(), command["output"])
        return {}
    return memory(variant)


def _seconds(variant: Variant) -> float:
    start = time.perf_counter()
    variant.forward()
    return time.perf_counter() - start


def serve(spec: Spec, answers: TextIO) -> None:
    """Build the variant, run it once (which compiles it, if it compiles), and then follow the commands."""

    def say(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    start = time.perf_counter()
    try:
        variant = build(spec)
    except NotAvailableError as error:
        say({"not_available": str(error)})
        return
    variant.forward()
    say({"ready": time.perf_counter() - start})
    idle_from, idle_cpu = time.perf_counter(), time.process_time()
    for line in sys.stdin:
        idle = {"idle_cpu_s": time.process_time() - idle_cpu, "idle_s": time.perf_counter() - idle_from}
        reply = answer(variant, json.loads(line))
        cpu_s = time.process_time() - idle_cpu
        say({**reply, **idle, "cpu_s": cpu_s})
        idle_from, idle_cpu = time.perf_counter(), time.process_time()


if __name__ == "__main__":
    keep_memory()
    # Compilers and warnings print on what they take for standard output.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(Spec(**json.loads(sys.argv[1])), answers)
