"""Traces of requests: public ones as they are, others by their columns, and what is wrong with a file in its own words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.base.errors import InputError
from sim.runs.workload import requests
from sim.scenario import load
from sim.workload import trace as traces
from sim.workload.requests import Request
from sim.workload.trace import read as read_trace

S, MS = 10**12, 10**9

# Rows in the form of the public traces; the numbers are our own.
AZURE_2023 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.6805900,374,44
2023-11-17 00:00:00.9951691,396,109
2023-11-17 00:00:01,879,55
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 00:00:01+00:00,76,15
"""
SPLITWISE = """\
request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size
0,2,0,0.25,1,4096,32
1,2,0,0.7500000000001,1,2048,8
"""
BURST_GPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE = """\
{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 27982.5, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47]}
"""


def read(path: Path, **options: Any) -> list[Request]:
    return read_trace(path, **options).requests


def written(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def rows(found: list[Request]) -> list[tuple[int, int, int, int]]:
    return [(r.arrival, r.context, r.prompt, r.tokens) for r in found]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (AZURE_2023, "a.csv", [(0, 374, 44), (1_314_579_100_000, 396, 109), (1_319_410_000_000, 879, 55)]),
        (AZURE_2024, "a.csv", [(0, 2162, 5), (7_405_000_000, 2399, 6), (990_070_000_000, 76, 15)]),
        (SPLITWISE, "s.csv", [(0, 4096, 32), (500_000_000_000, 2048, 8)]),
        (MOONCAKE, "m.jsonl", [(0, 6955, 52), (500_500_000_000, 6472, 26)]),
    ],
)
def test_public_traces_load_as_they_are(tmp_path: Path, text: str, name: str, expected: list[tuple[int, int, int]]) -> None:
    found = read(written(tmp_path, text, name))
    assert rows(found) == [(arrival, 0, prompt, tokens) for arrival, prompt, tokens in expected]
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.replace("\n", "\r\n").encode("utf-8-sig")))
    assert read(packed) == found


BAILIAN = """\
{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.5, "input_length": 521, "output_length": 132, "type": "text", "turn": 1, "hash_ids": [7, 8]}
{"chat_id": 160, "parent_chat_id": 159, "timestamp": 62.0, "input_length": 700, "output_length": 9, "type": "text", "turn": 2, "hash_ids": [7, 9]}
"""  # noqa: E501


def test_two_layouts_of_equal_columns_are_told_apart_by_all_of_their_keys(tmp_path: Path) -> None:
    """Mooncake counts milliseconds and Bailian seconds in a column of one name: a factor of 1,000 that no one may guess."""
    assert [r.arrival for r in read(written(tmp_path, BAILIAN, "b.jsonl"))] == [0, S // 2]
    assert [r.arrival for r in read(written(tmp_path, MOONCAKE, "m.jsonl"))] == [0, 500_500_000_000]
    for extra in ("", ', "session_id": "x"'):
        rows = "".join(f'{{"timestamp": {t}, "input_length": 5, "output_length": 2{extra}}}\n' for t in (4, 6.5))
        path = written(tmp_path, rows, "t.jsonl")
        message = (
            r"t.jsonl:1: column 'timestamp': expected the key 'unit' \(s, ms, .*ms in a trace of Mooncake and s in .*Bailian"
        )
        with pytest.raises(InputError, match=message):
            read(path)
        assert [r.arrival for r in read(path, unit="s")] == [0, 5 * S // 2]
        assert [r.arrival for r in read(path, unit="ms")] == [0, 5 * MS // 2]


def test_the_unit_of_columns_that_the_scenario_names_is_not_guessed(tmp_path: Path) -> None:
    columns = {"arrival": "when", "tokens": "out"}
    with pytest.raises(
        InputError, match=r"trace.csv:2: column 'when': expected the key 'unit' .* because this column is of no known trace"
    ):
        read(written(tmp_path, "when,out\n7,3\n"), columns=columns)
    assert rows(read(written(tmp_path, "when,out\n7 ms,3\n9 ms,4\n"), columns=columns)) == [(0, 0, 0, 3), (2 * MS, 0, 0, 4)]
    assert read(written(tmp_path, MOONCAKE, "m.jsonl"), columns={"arrival": "timestamp"})[1].arrival == 500_500_000_000
    # Azure's layout is known, but not the unit of another column of it.
    with pytest.raises(InputError, match="expected the key 'unit'"):
        read(
            written(tmp_path, AZURE_2023),
            columns={"arrival": "ContextTokens", "prompt": "GeneratedTokens", "tokens": "GeneratedTokens"},
        )


def test_ids_of_prefixes_are_kept_with_the_requests(tmp_path: Path) -> None:
    assert [r.prefix for r in read(written(tmp_path, MOONCAKE, "m.jsonl"))] == [(46, 47, 48), (46, 47)]
    table = 'arrival,tokens,ids\n0,1,"[3, 4]"\n1,1,\n'
    assert [r.prefix for r in read(written(tmp_path, table), columns={"prefix": "ids"})] == [(3, 4), ()]
    with pytest.raises(InputError, match=r"trace.csv:2: column 'ids': expected a list of whole numbers, found 'a b'"):
        read(written(tmp_path, "arrival,tokens,ids\n0,1,a b\n"), columns={"prefix": "ids"})


def test_columns_that_are_not_used_are_listed(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, SPLITWISE)).ignored == ("request_id", "request_type", "application_id", "batch_size")
    assert read_trace(written(tmp_path, BAILIAN, "b.jsonl")).ignored == ("chat_id", "parent_chat_id", "type", "turn")
    assert read_trace(written(tmp_path, MOONCAKE, "m.jsonl")).ignored == ()


LENGTHS = ",num_prefill_tokens,num_decode_tokens,total_tokens\n0,374,44,418\n1,396,109,505\n"


def test_lengths_need_no_arrivals_where_the_scenario_has_them(tmp_path: Path) -> None:
    path = written(tmp_path, LENGTHS, "lengths.csv")
    with pytest.raises(
        InputError, match=r"lengths.csv:1: the requests have no arrivals: expected columns.arrival, or trace.arrivals"
    ):
        read(path)
    assert rows(read(path, timed=False)) == [(0, 0, 374, 44), (0, 0, 396, 109)]
    with pytest.raises(InputError, match="no arrivals"):  # start is a time of the file
        read(path, timed=False, start=S)

    def of(workload: str) -> list[Request]:
        (tmp_path / "s.yaml").write_text(f"model: {{config: llama-3.2-1b}}\nworkload: {workload}\n")
        return requests(load(tmp_path / "s.yaml"))

    assert rows(of("{trace: lengths.csv, concurrency: 2}")) == [(0, 0, 374, 44), (0, 0, 396, 109)]
    generated = of("{trace: {file: lengths.csv, arrivals: {process: constant, rate: 4/s}}}")
    assert rows(generated) == [(0, 0, 374, 44), (S // 4, 0, 396, 109)]
    # Arrivals of a file order the requests of a closed loop, whatever their unit.
    written(tmp_path, "when,out\n9,1\n5,2\n", "late.csv")
    trace = "{file: late.csv, columns: {arrival: when, tokens: out}}"
    assert rows(of(f"{{trace: {trace}, concurrency: 1}}")) == [(0, 0, 0, 2), (0, 0, 0, 1)]


def test_an_array_of_objects_is_read_like_lines_of_them(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in MOONCAKE.splitlines()]
    expected = read(written(tmp_path, MOONCAKE, "m.jsonl"))
    for name, indent in (("a.json", None), ("b.json", 1), ("c.jsonl", None)):
        assert read(written(tmp_path, json.dumps(lines, indent=indent), name)) == expected
    assert read(written(tmp_path, MOONCAKE, "lines.json")) == expected
    many = [{"arrival": k, "tokens": k + 1, "prompt": 3} for k in range(5000)]  # more than is read at once
    found = read(written(tmp_path, "\n" + json.dumps(many, indent=1), "many.json"))
    assert [(r.arrival, r.tokens) for r in found] == [(k * S, k + 1) for k in range(5000)]
    assert read(written(tmp_path, '[{"prompt_len": 12, "output_len": 100}]', "s.json"), timed=False)[0].final == 111


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "t.json: expected requests, found none"),
        ('[{"arrival": 1, "tokens": 2},\n 3]', "t.json:2: expected a JSON object, found 3"),
        ('[{"arrival": 1, "tokens": 2},\n{"arrival": 1', "t.json:2: expected a JSON object, found '{\"arrival\": 1'"),
        ('[{"arrival": 1, "tokens": 2}\n{"arrival": 1}]', "t.json:2: expected ',' or ']' after an object, found '{'"),
        ('[{"arrival": 1, "tokens": 2}', "t.json:1: expected ',' or ']' after an object, found the end"),
        ("[" * 100_000, "t.json:1: expected a JSON object"),
        ('[{"arrival": 1,\n "tokens": "x"}]', "t.json:1: column 'tokens': expected a whole number"),
    ],
)
def test_errors_in_an_array(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, text, "t.json"))
    assert expected in str(caught.value)


SHARE_GPT = [
    {"id": "a", "conversations": [
        {"from": "human", "value": "x" * 40}, {"from": "gpt", "value": "y" * 21},
        {"from": "human", "value": "x" * 8}, {"from": "gpt", "value": "y" * 4},
    ]},
    {"id": "b", "conversations": [
        {"from": "system", "value": "s" * 4}, {"from": "human", "value": "x" * 4}, {"from": "gpt", "value": "y" * 40},
    ]},
]  # fmt: skip


def test_a_conversation_is_read_by_turns(tmp_path: Path) -> None:
    """At 4 characters a token: 10 and 6 tokens, then 2 and 1 after 16; a system message is new in the first turn."""
    path = written(tmp_path, json.dumps(SHARE_GPT), "s.json")
    with pytest.raises(InputError, match=r"s.json:1: conversations have no arrivals"):
        read(path, characters_per_token=4)
    with pytest.raises(InputError, match=r"s.json:1: expected the key 'characters_per_token'"):
        read(path, timed=False)
    found = read_trace(path, timed=False, characters_per_token=4)
    assert rows(found.requests) == [(0, 0, 10, 6), (0, 0, 18, 1), (0, 0, 2, 10)]
    assert [r.conversation for r in found.requests] == [0, 0, 1]
    assert found.ignored == ("id",)
    cached = read(path, timed=False, characters_per_token=4, history="context")
    assert rows(cached) == [(0, 0, 10, 6), (0, 16, 2, 1), (0, 0, 2, 10)]
    messages = [{"messages": [{"role": "user", "content": "x" * 8}, {"role": "assistant", "content": "y" * 8}]}]
    assert rows(read(written(tmp_path, json.dumps(messages), "m.json"), timed=False, characters_per_token=4)) == [(0, 0, 2, 2)]
    with pytest.raises(InputError, match=r"m.json:1: expected messages with a role \('from' or 'role'\) and a text"):
        read(written(tmp_path, '[{"messages": [7]}]', "m.json"), timed=False, characters_per_token=4)


def test_requests_that_failed_are_left_out_on_request(tmp_path: Path) -> None:
    path = written(tmp_path, BURST_GPT)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}:3: column 'Response tokens': expected a whole number from 1 (or skip_empty, to leave such rows out), found 0"
    )
    assert rows(read(path, skip_empty=True)) == [(0, 0, 472, 18), (113 * S, 0, 417, 276)]


def test_our_own_columns(tmp_path: Path) -> None:
    text = "tokens,arrival,context,prompt\n3,0 us,5,7\n4,1.5 ms,6,8\n"
    assert rows(read(written(tmp_path, text))) == [(0, 5, 7, 3), (1_500_000_000, 6, 8, 4)]
    assert rows(read(written(tmp_path, "arrival,tokens\n1,2.0\n1.25,3\n"))) == [(0, 0, 0, 2), (S // 4, 0, 0, 3)]
    lines = "\n".join(json.dumps({"arrival": a, "tokens": 2}) for a in (0.1, 0.2, 0.3))
    assert [r.arrival for r in read(written(tmp_path, lines, "x.jsonl"))] == [0, S // 10, S // 5]  # decimals, not floats


def test_columns_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "when,in,out\n7,10,3\n9,11,4\n")
    with pytest.raises(InputError, match=r"trace.csv:1: expected the columns of a known trace, or 'columns' with at least"):
        read(path)
    columns = {"arrival": "when", "context": "in", "tokens": "out"}
    assert rows(read(path, columns=columns, unit="ms")) == [(0, 10, 0, 3), (2 * MS, 11, 0, 4)]
    with pytest.raises(InputError, match=r"trace.csv:1: no column 'Out' \(did you mean 'out'\?\); found 'when', 'in', 'out'"):
        read(path, columns={**columns, "tokens": "Out"})


def test_a_known_column_may_mean_another_thing(tmp_path: Path) -> None:
    """Context tokens of Azure's trace are a prompt, unless one wants to study only decode."""
    found = read(written(tmp_path, AZURE_2023), columns={"context": "ContextTokens"})
    assert rows(found)[0] == (0, 374, 0, 44)


def test_a_known_column_that_means_another_thing_leaves_its_own_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"trace\.csv:1: columns: expected tokens as well: 'tokens' is taken for another field"
    ):
        read(written(tmp_path, "arrival,tokens\n0,1\n"), columns={"arrival": "tokens"})


def test_a_part_of_a_trace(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival,tokens\n" + "".join(f"{10 + k},{k + 1}\n" for k in range(10)))
    assert rows(read(path, start=3 * S, duration=4 * S)) == [(k * S, 0, 0, k + 4) for k in range(4)]  # [3 s, 7 s)
    assert [r.tokens for r in read(path, start=3 * S, limit=2)] == [4, 5]
    with pytest.raises(InputError, match="expected requests between start and start"):
        read(path, start=60 * S)


def test_speed_divides_the_gaps(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival,tokens\n0,1\n1,1\n4,1\n")
    assert [r.arrival for r in read(path, speed=traces.Fraction("2.5"))] == [0, 2 * S // 5, 8 * S // 5]
    assert [r.arrival for r in read(path, speed=traces.Fraction("0.1"))] == [0, 10 * S, 40 * S]


def test_rows_are_put_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival,tokens\n5,1\n3,2\n5,3\n")
    assert rows(read(path)) == [(0, 0, 0, 2), (2 * S, 0, 0, 1), (2 * S, 0, 0, 3)]  # of equals, the first line first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arrival,tokens\n1,x\n", "t.csv:2: column 'tokens': expected a whole number from 0 to 10000000, found 'x'"),
        ("arrival,tokens\n1,2\n\n2,1.5\n", "t.csv:4: column 'tokens': expected a whole number from 0 to 10000000, found '1.5'"),
        (
            "arrival,tokens\nsoon,2\n",
            "t.csv:2: column 'arrival': expected a number, a duration such as '300 us' or a time such as",
        ),
        ("arrival,tokens\n2023-02-31 00:00:00,2\n", "t.csv:2: column 'arrival': expected a number, a duration"),
        ("arrival,tokens\nnan,2\n", "t.csv:2: column 'arrival': expected a number, a duration"),
        ("arrival,tokens\n1,1_000\n", "t.csv:2: column 'tokens': expected a whole number from 0 to 10000000, found '1_000'"),
        ("arrival,tokens\n1,\u0661\u0662\n", "t.csv:2: column 'tokens': expected a whole number"),
        ("arrival,tokens\n1_0,2\n", "t.csv:2: column 'arrival': expected a number, a duration"),
        ("arrival,tokens\n\u0661,2\n", "t.csv:2: column 'arrival': expected a number, a duration"),
        ("arrival,tokens\n1,2\n2\n", "t.csv:3: expected 2 columns, found 1"),
        ("arrival,tokens,tokens\n1,2,3\n", "t.csv:1: expected each column once, found 'tokens' twice"),
        ("arrival,tokens\n0,1\n2e6,1\n", "t.csv: expected arrivals within 1,000,000 s, found 2000000.000 s"),
        ("arrival,tokens\n", "t.csv: expected requests, found none"),
        ("", "t.csv: expected requests, found none"),
        ('arrival,tokens\n1,"2\n', "t.csv:2: not valid CSV: unexpected end of data"),
        ("arrival,tokens\n1," + "7" * 2**20, "t.csv:2: expected a line of less than 1,048,576 characters"),
        ("arrival,tokens\n1," + "7" * 4000, "t.csv:2: column 'tokens': expected a whole number"),
    ],
)
def test_errors_in_a_csv(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, text, "t.csv"))
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"arrival": 1, "tokens": 2}\n{"arrival": 2}\n',
            "t.jsonl:2: column 'tokens': expected a whole number from 0 to 10000000, found null",
        ),
        (
            '{"arrival": 1, "tokens": true}',
            "t.jsonl:1: column 'tokens': expected a whole number from 0 to 10000000, found true",
        ),
        ('{"arrival": 1, "tokens": 1.5}', "t.jsonl:1: column 'tokens': expected a whole number from 0 to 10000000, found 1.5"),
        ('{"arrival": 1, "tokens": NaN}', "t.jsonl:1: column 'tokens': expected a whole number from 0 to 10000000, found .nan"),
        ('{"arrival": 1, "tokens": 2}\n[1]\n', "t.jsonl:2: expected a JSON object, found a list"),
        ("arrival,tokens\n", "t.jsonl:1: expected a JSON object, found 'arrival,tokens'"),
        ("[" * 100_000, "t.jsonl:1: expected a JSON object"),
        ('{"arrival": 1e9999999999999999999, "tokens": 1}', "t.jsonl:1: expected a JSON object"),  # more than a Decimal holds
    ],
)
def test_errors_in_jsonl(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, text, "t.jsonl"))
    assert expected in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE_2023, "azure.csv")
    with pytest.raises(InputError, match=r"azur.csv: no such file \(did you mean 'azure.csv'\?\)"):
        read(tmp_path / "azur.csv")
    with pytest.raises(InputError, match="expected a file, found a folder"):
        read(tmp_path)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(path.read_bytes())[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "x.csv.gz")
    path.write_bytes(b"arrival,tokens\n1,\xff\n")
    with pytest.raises(InputError, match="cannot be read: not UTF-8"):
        read(path)


def test_too_many_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_REQUESTS", 3)
    path = written(tmp_path, "arrival,tokens\n" + "1,1\n" * 4)
    with pytest.raises(InputError, match=r"trace.csv:5: expected at most 3 requests; take fewer with limit"):
        read(path)
    assert len(read(path, limit=3)) == 3


def test_a_path_is_relative_to_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    written(folder, AZURE_2023, "azure.csv")
    (folder / "s.yaml").write_text("model: {config: llama-3.2-1b}\nworkload: {trace: azure.csv}\n")
    monkeypatch.chdir(tmp_path)
    assert [r.prompt for r in requests(load("study/s.yaml"))] == [374, 396, 879]
    written(folder, AZURE_2023.replace(",44", ",many"), "azure.csv")
    scenario = load("study/s.yaml")
    message = r"study/s.yaml:2:19: workload.trace: study/azure.csv:2: column 'GeneratedTokens': expected"
    with pytest.raises(InputError, match=message), scenario.located():
        requests(scenario)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 5000), st.integers(1, 5000)), min_size=1, max_size=30))
def test_written_traces_are_read_exactly(
    tmp_path_factory: pytest.TempPathFactory, given_rows: list[tuple[int, int, int]]
) -> None:
    """Milliseconds with three decimals, in CSV and in JSON: order, relative times and counts survive exactly."""
    folder = tmp_path_factory.mktemp("t")
    ordered = sorted(given_rows, key=lambda row: row[0])
    expected = [((a - ordered[0][0]) * 10**6, 0, p, t) for a, p, t in ordered]
    table = "arrival,prompt,tokens\n" + "".join(f"{a // 1000}.{a % 1000:03},{p},{t}\n" for a, p, t in given_rows)
    assert rows(read(written(folder, table), unit="ms")) == expected
    lines = "".join(f'{{"arrival": {a // 1000}.{a % 1000:03}, "prompt": {p}, "tokens": {t}}}\n' for a, p, t in given_rows)
    assert rows(read(written(folder, lines, "t.jsonl"), unit="ms")) == expected
