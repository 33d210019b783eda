"""What the comparison with llama-server rests on: what a stream meant, and equal terms."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from localrun.plan.plan import Execution
from tests.plans import bare_plan

ROOT = Path(__file__).parents[2]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def bench(name: str) -> Any:
    """A module of bench/, whose scripts import each other as they do when run."""
    folder = str(ROOT / "bench")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(name)


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(piece: str | None) -> bytes:
    return event(choices=[{"delta": {"role": "assistant", "content": piece}}])


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


COUNTS = event(
    choices=[],
    usage={"prompt_tokens": 128, "completion_tokens": 3},
    timings={"cache_n": 4, "draft_n": 2},
)
BODY = [chunk(text(None)), chunk(text("a")), chunk(text("b")), chunk(COUNTS + b"data: [DONE]\n\n")]
END = b"0\r\n\r\n"


def test_an_answer_has_the_times_of_its_texts_and_the_servers_counts() -> None:
    client = bench("serving_client")
    reads = [(float(at), part) for at, part in enumerate([HEAD, *BODY, END])]

    answer = client.read_answer(-0.5, reads)

    assert (answer.texts, answer.text, answer.first_s) == ((2.0, 3.0), "ab", 2.5)
    assert (answer.prompt, answer.cached, answer.generated, answer.drafted) == (128, 4, 3, 2)
    assert answer.gaps == (1.0,)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_how_a_stream_was_cut_into_reads_changes_nothing_but_its_times(size: int) -> None:
    client = bench("serving_client")
    whole = HEAD + b"".join(BODY) + END
    reads = [(float(at), whole[at : at + size]) for at in range(0, len(whole), size)]

    answer = client.read_answer(0.0, reads)

    assert (answer.text, answer.prompt, answer.generated) == ("ab", 128, 3)
    for piece, when in zip((b'"a"', b'"b"'), answer.texts, strict=True):
        # An event counts as here with the read that holds its line's end.
        ended = whole.index(b"\n", whole.index(piece))
        assert when <= ended < when + size


REFUSED = {
    "an error status": (b"HTTP/1.1 429 Too Many\r\n\r\nbusy", "429"),
    "an answer that is no stream": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "200"),
    "an error as an event": (HEAD + chunk(event(error={"message": "no room"})), "no room"),
}


@pytest.mark.parametrize(("response", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_answer_ends_the_measurement(response: bytes, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        bench("serving_client").read_answer(0.0, [(1.0, response)])


def test_only_waits_that_a_stretch_of_time_fell_into_count_as_within_it() -> None:
    client = bench("serving_client")
    answer = client.Answer(0.0, (1.0, 2.0, 6.0, 7.0, 9.0), "")

    assert client.gaps_within(answer, 3.0, 6.5) == [4.0, 1.0]
    assert client.gaps_within(answer, 2.0, 6.0) == [4.0]


def test_a_percentile_is_one_of_the_values() -> None:
    percentile = bench("serving_client").percentile
    values = [float(n) for n in range(100, 0, -1)]

    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 50, 95, 100]
    assert percentile([], 0.5) == 0


def test_prompts_have_the_length_asked_for_and_begin_alike_only_for_one_key() -> None:
    prompts = bench("serving_prompts").Prompts([f"w{n}" for n in range(1000)], "seed")
    # A server counted 140 where 128 were asked for: its template writes twelve.
    fitted = prompts.fitted(128, 140)

    words = (fitted.system("a") + " " + fitted.user(128, "a")).split()
    assert len(words) + 12 == 128
    assert fitted.system("a") == fitted.system("a")
    assert len({fitted.system("a", at)[:12] for at in range(50)}) > 45


def test_both_servers_get_the_parameters_of_one_plan() -> None:
    programs = bench("serving_programs")
    execution = Execution(
        n_ctx=512,
        parallel=8,
        ubatch=256,
        threads=3,
        threads_max=3,
        kv_type="q8_0",
        mmap=True,
        gpu_layers=0,
    )
    plan = bare_plan(execution, ["/models/m.gguf"])

    ours = _flags(programs.our_command(plan))
    theirs = _flags(programs.their_command(Path("llama-server"), plan, 4000))

    assert (ours["--parallel"], ours["--ctx"], ours["--threads"]) == ("8", "512", "3")
    assert (theirs["--parallel"], theirs["--ctx-size"]) == ("8", str(8 * 512))
    assert {theirs[name] for name in ("--threads", "--threads-batch")} == {"3"}
    assert {theirs[name] for name in ("--cache-type-k", "--cache-type-v")} == {"q8_0"}
    assert ours["--kv-type"] == "q8_0"
    assert {theirs[name] for name in ("--batch-size", "--ubatch-size")} == {"256"}
    assert theirs["--model"] == "/models/m.gguf"


def _flags(command: tuple[str, ...]) -> dict[str, str]:
    return dict(pairwise(command))


def test_llama_server_is_built_as_the_makefile_builds_the_package() -> None:
    server = bench("llama_server")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    written = re.search(r"^export CMAKE_ARGS \?= (.*)$", makefile, re.MULTILINE)

    assert written is not None
    assert written[1] == server.CMAKE_ARGS
    command = server.configure_command(Path("source"), Path("built"), server.CMAKE_ARGS)
    assert {"-DGGML_OPENMP=OFF", "-DCMAKE_BUILD_TYPE=Release"} <= set(command)


def test_an_archive_gives_its_regular_files_below_llama_cpp_and_nothing_else(
    tmp_path: Path,
) -> None:
    archive = tmp_path / "a.tar.gz"
    inside = "pkg-1/vendor/llama.cpp"
    with tarfile.open(archive, "w:gz") as tar:
        for name in (f"{inside}/CMakeLists.txt", f"{inside}/../../out.txt", "pkg-1/setup.py"):
            _add(tar, name, tarfile.REGTYPE)
        _add(tar, f"{inside}/link", tarfile.SYMTYPE)
        _add(tar, "/vendor/llama.cpp/absolute", tarfile.REGTYPE)

    bench("llama_cpp_source").unpack(archive, tmp_path / "place")

    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a.tar.gz", "place/CMakeLists.txt", "place/absolute"}


def _add(tar: tarfile.TarFile, name: str, kind: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, 1 if kind == tarfile.REGTYPE else 0
    member.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE else ""
    tar.addfile(member, io.BytesIO(b"x"))


def test_a_turn_that_computes_what_was_known_is_missed() -> None:
    prefix = bench("prefix")
    good = prefix.Turn(prompt=1570, cached=1530, before=1500, first_s=0.1)
    bad = prefix.Turn(prompt=1570, cached=1499, before=1500, first_s=0.1)

    assert prefix.missed({"cold": [good]}) == []
    assert prefix.missed({"second turn": [good, bad]}) == [
        "second turn: 71 of 1570 tokens computed, 1500 were known"
    ]


MISSED = {
    "both hold": ({1: 0.97, 8: 1.0}, 3.0, []),
    "one stream": ({1: 0.96, 8: 1.0}, 3.0, ["1 streams"]),
    "eight streams": ({1: 1.2, 8: 0.99}, 3.0, ["8 streams"]),
    "streams without a bound": ({2: 0.1, 16: 0.1}, 3.0, []),
    "the stall": ({}, 3.1, ["a long prompt"]),
}


@pytest.mark.parametrize(("ratios", "stall", "said"), MISSED.values(), ids=MISSED.keys())
def test_a_bound_that_is_missed_is_told(
    ratios: dict[int, float], stall: float, said: list[str]
) -> None:
    report = {
        "streams": {streams: {"ratio": ratio} for streams, ratio in ratios.items()},
        "stall": {"ours": {"ratio": stall}},
    }

    found = bench("serving").missed(report)

    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said


def test_threads_of_a_server_are_told_busiest_first_and_from_where_they_began() -> None:
    spent = bench("serving")._spent(
        {("port", 1): 1.0, ("worker", 2): 5.0},
        {("port", 1): 1.5, ("worker", 2): 6.0, ("worker", 3): 2.0, ("worker", 4): 0.0},
    )

    assert spent == {"port": [0.5], "worker": [2.0, 1.0]}
