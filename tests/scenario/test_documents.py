"""YAML 1.2 with positions, limits, and overrides."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.base.documents import MAX_BYTES, MAX_DEPTH, dotted, from_plain, key_path, parse, read
from sim.base.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),  # the core schema of 1.2, not 1.1
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2001-01-01", "2001-01-01"),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("~", None),
        ("Null", None),
        ("'~'", "~"),
        ('"5"', "5"),
        ("! 5", 5),
        ("<<", "<<"),
        ("100 GB/s", "100 GB/s"),
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    found = parse(f"a: {text}").plain()["a"]
    assert found == value
    assert type(found) is type(value)


def test_nan() -> None:
    assert math.isnan(parse("a: .NaN").plain()["a"])


def test_positions_count_from_one() -> None:
    document = parse("# a\nmodel: {config: x,\n  layers: 3}\nlist:\n  - a\n  - b: 7\n", "f.yaml")
    assert str(document.place(("model", "layers"))) == "f.yaml:3:11"
    assert str(document.place(("model", "layers"), key=True)) == "f.yaml:3:3"
    assert str(document.place(("list", 1, "b"))) == "f.yaml:6:8"
    assert str(document.place(("model", "absent", "more"))) == "f.yaml:2:8"
    assert str(document.place(())) == "f.yaml:2:1"


def test_an_alias_is_located_at_its_anchor() -> None:
    document = parse("a: &x {k: 1}\nb: *x\n", "f.yaml")
    assert document.plain() == {"a": {"k": 1}, "b": {"k": 1}}
    assert str(document.place(("b", "k"))) == "f.yaml:1:11"


def bomb(levels: int) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [" + ", ".join([f"*l{i - 1}"] * 9) + "]" for i in range(1, levels)]
    return "\n".join(lines)


def deep_by_aliases() -> str:
    half = MAX_DEPTH // 2 + 5
    return f"a: &a {'[' * half}{']' * half}\nb: {'[' * half}*a{']' * half}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1:1: the file is empty"),
        ("# only a comment\n", "f.yaml:1:1: the file is empty"),
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: duplicate key 'a', first on line 1"),
        ("x: {a: 1, 'a': 2}\n", "f.yaml:1:11: duplicate key 'a'"),
        (bomb(9), "f.yaml:6:15: more than 100000 values, aliases written out"),
        (deep_by_aliases(), f"f.yaml:2:34: more than {MAX_DEPTH} levels deep, aliases written out"),
        ("[" * 60, f"f.yaml:1:51: more than {MAX_DEPTH} levels deep"),
        ("a: [" * 100_000, "f.yaml:1:"),
        ("a: &x [*x]", "f.yaml:1:8: the alias *x is inside of what it stands for"),
        ("a: &xyz 1\nb: *xyy", "f.yaml:2:4: unknown alias *xyy (did you mean 'xyz'?)"),
        ("&x a: 1\n*x : 2", "f.yaml:2:1: expected a text as key, found an alias"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("a: b: c", "f.yaml:1:5: not valid YAML: mapping values are not allowed here"),
        ("a: 1\nb: x\x00y", "f.yaml:2:5: not valid YAML: '\\x00' is not allowed"),
        ("---\na\n---\nb", "f.yaml:3:1: expected one YAML document, found a second"),
        ("%YAML 1.1\n---\na: no", "f.yaml:2:1: expected YAML 1.2"),
        ("a: !!python/object:os.system x", "f.yaml:1:4: expected a value without a tag"),
        ("? [1]\n: 2", "f.yaml:1:3: expected a text as key, found a collection"),
        ('a: "\\ud800"', "f.yaml:1:4: not a text: '\\ud800'"),
        ('a: "\\UFFFFFFFF"', "f.yaml:1:1: not valid YAML after this"),
        ("a: " + "9" * 5000, "f.yaml:1:4: a number of 5000 characters"),
        ("x" * (MAX_BYTES + 1), f"f.yaml: larger than {MAX_BYTES} bytes"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    good = tmp_path / "two_tokens.yaml"
    good.write_bytes("\ufeffa: 1\n".encode())
    assert read(good).plain() == {"a": 1}
    assert message(tmp_path / "two_token.yaml") == f"{tmp_path}/two_token.yaml: no such file (did you mean 'two_tokens.yaml'?)"
    assert message(tmp_path / "none" / "x.yaml") == f"{tmp_path}/none/x.yaml: no such file"
    assert message(tmp_path) == f"{tmp_path}: expected a YAML file, found a directory"
    assert "not a directory" in message(good / "x.yaml").lower()
    assert "null byte" in message(Path("a\0b"))
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    assert message(latin) == f"{latin}:2:7: not UTF-8: byte 0xe9"
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    assert message(large) == f"{large}: larger than {MAX_BYTES} bytes"
    if os.geteuid() != 0:  # root reads everything
        good.chmod(0)
        assert message(good) == f"{good}: no permission to read it"


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"^x\.yaml: no permission to read it$"):
        read("x.yaml")


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("a.b=7", ("a", "b"), 7),
        ("a.b=50 GB/s", ("a", "b"), "50 GB/s"),
        ("a.b=no", ("a", "b"), "no"),
        ("a.b={c: [1, 2]}", ("a", "b", "c", 1), 2),
        ("a.b=", ("a", "b"), None),
        ("a.b=x=y", ("a", "b"), "x=y"),
        ("l.1.t=9", ("l", 1, "t"), 9),
        ("l[0].t=9", ("l", 0, "t"), 9),
        ("n.new.er=1", ("n", "new", "er"), 1),  # null and absent sections are made
    ],
)
def test_override(assignment: str, path: tuple[str | int, ...], value: object) -> None:
    before = parse("a: {b: 1, c: 2}\nl: [{t: 1}, {t: 2}]\nn: null\n")
    after = before.override([assignment])
    node, reached = after.find(path)
    assert reached == path
    assert node.plain() == value
    assert str(node.place) == f"--set {assignment}"
    assert before.plain() == {"a": {"b": 1, "c": 2}, "l": [{"t": 1}, {"t": 2}], "n": None}


def test_an_override_changes_one_use_of_an_alias() -> None:
    document = parse("a: &x {k: 1}\nb: *x\n").override(["b.k=2"])
    assert document.plain() == {"a": {"k": 1}, "b": {"k": 2}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a.b", "--set a.b: expected KEY.KEY=VALUE"),
        ("=1", "--set =1: expected KEY.KEY=VALUE"),
        ("a..b=1", "--set a..b=1: expected KEY.KEY=VALUE"),
        ("a.b=[1", "--set a.b=[1: not valid YAML: expected ',' or ']'"),
        ("a.b={c: 1, c: 2}", "--set a.b={c: 1, c: 2}: duplicate key 'c'"),
        ("a.b=*x", "--set a.b=*x: unknown alias *x"),
        ("a.b.c=1", "--set a.b.c=1: a.b is 1, not a mapping; set it as a whole: 'a.b={..., c: ...}'"),
        ("l.2=1", "--set l.2=1: l is a list of 1, expected an index below that, found '2'"),
        ("l.x=1", "--set l.x=1: l is a list of 1"),
        (".".join("a" * 60) + "=1", "--set a.a.a"),
        ("a.b=" + "x" * 5000 + ": [", "--set a.b=xxx"),
    ],
    ids=lambda value: value[:20],
)
def test_bad_override(assignment: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse("a: {b: 1}\nl: [1]\n").override([assignment])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 300


def test_overrides_apply_in_order() -> None:
    assert parse("a: 1").override(["a=2", "a=3"]).plain() == {"a": 3}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({1: 2}, "<dict>: expected a text as key, found 1"),
        ({"a": {1, 2}}, "<dict>: expected plain data, found set"),
        ({"a": b"x"}, "<dict>: expected plain data, found bytes"),
        ({"a": ["x"] * 100_001}, "<dict>: more than 100000 values"),
    ],
)
def test_bad_plain_data(data: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        from_plain(data)


def test_plain_data_that_contains_itself() -> None:
    data: list[object] = []
    data.append(data)
    with pytest.raises(InputError, match="levels deep"):
        from_plain(data)


def test_paths_as_text() -> None:
    assert key_path("workload.sequences[0].tokens") == key_path("workload.sequences.0.tokens")
    assert dotted(key_path("workload.sequences.0.tokens")) == "workload.sequences[0].tokens"


def is_one_line_with_its_place(error: InputError) -> None:
    assert len(str(error).splitlines()) == 1
    assert re.match(r"<string>:\d+:\d+: ", str(error))


YAML_LIKE = st.text(st.sampled_from("ab01 \n\t:,-[]{}&*!|>'\"%#?@.<~\\xuU\u00e9\ufeff\x85\u2028"), max_size=60)


@given(st.text() | YAML_LIKE)
def test_any_text_is_a_document_or_an_input_error(text: str) -> None:
    try:
        document = parse(text)
    except InputError as error:
        is_one_line_with_its_place(error)
    else:
        assert from_plain(document.plain()).plain() == document.plain() or "nan" in str(document.plain())


def test_an_index_of_absurd_length() -> None:
    nines = "9" * 5000
    with pytest.raises(InputError, match=r"^--set [^\n]*a is a list of 1, expected an index below that, found '9+\.\.\.'$"):
        parse("a: [{b: 1}]").override([f"a.{nines}.b=1"])
    assert key_path(f"a.{nines}") == ("a", nines)
