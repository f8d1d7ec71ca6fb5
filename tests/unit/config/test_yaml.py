import math

import pytest

from raymlops.config.yaml import MAX_VALUES, Place, dotted, read, read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("3E4", 30000.0),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1_000", 1000),
        ("-7", -7),
        ("1:30", "1:30"),
        ("off", "off"),
        ("True", True),
        ("~", None),
        ("2024-01-02", "2024-01-02"),
        ("'1'", "1"),
        ("!!str 5", "5"),
        (".inf", math.inf),
        ("-_", "-_"),
        ("=", "="),
    ],
)
def test_scalars_are_what_a_person_expects(text, value):
    """YAML 1.2: leading zeros are decimal, times and switches are text, exponents need no point."""
    document = read(f"key: {text}\n", "a.yaml")
    assert document.problems == []
    assert document.data["key"] == value
    assert type(document.data["key"]) is type(value)


def test_a_version_directive_changes_nothing():
    """A file that says %YAML 1.1 is read by the same rules."""
    document = read("%YAML 1.1\n---\na: 010\nb: off\nc: 1:30\n", "a.yaml")
    assert document.data == {"a": 10, "b": "off", "c": "1:30"}


def test_aliases_and_merge_keys_know_where_the_value_is_written():
    """An alias has the place of its anchor; own keys win over merged ones, the first of several merged ones wins."""
    document = read(
        "one: &one {lr: 1, seed: 2}\n"
        "two: &two {lr: 3, epochs: 4}\n"
        "a:\n"
        "  <<: [*one, *two]\n"
        "  seed: 5\n"
        "b: *two\n",
        "a.yaml",
    )  # fmt: skip
    assert document.problems == []
    assert document.data["a"] == {"lr": 1, "seed": 5, "epochs": 4}
    assert document.values["a", "lr"] == Place("a.yaml", 1, 16)
    assert document.values["a", "epochs"] == Place("a.yaml", 2, 27)
    assert document.values["a", "seed"] == Place("a.yaml", 5, 9)
    assert document.values["b", "lr"] == Place("a.yaml", 2, 16)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: [1,\n", "a.yaml:2:1", "expected the node content"),
        ("a:\n\tb: 1\n", "a.yaml:2:1", "indent with spaces"),
        ("a: b: c\n", "a.yaml:1:5", "needs quotes"),
        ("a: @x\n", "a.yaml:1:4", "put the text in quotes"),
        ("a: *x\n", "a.yaml:1:4", "undefined alias 'x'"),
        ("a: 1\n---\nb: 2\n", "a.yaml:2:1", "one file holds one document"),
        ("a: 'x\n", "a.yaml:2:1", "unexpected end"),
        ("ab: 1\na: \x00\n", "a.yaml:2:4", "U+0000"),
        ("[" * 2000, "a.yaml", "nested too deeply"),
        ("&a [*a]", "a.yaml:1:1", "inside its own anchor"),
        ("a: &a\n  <<: *a\n", "a.yaml:1:4", "alias of a mapping"),
        ("a: {<<: 3}\n", "a.yaml:1:9", "alias of a mapping"),
        ("a: !foo 3\n", "a.yaml:1:4", "tag !foo is not known"),
        ("a: !!python/name:os.system {}\n", "a.yaml:1:4", "is not known"),
        ("? [x]\n: 1\n", "a.yaml:1:3", "a key must be text"),
        ('a: "\\ud800"\n', "a.yaml:1:4", "surrogate"),
        ('a: "a\\0b"\n', "a.yaml:1:4", "null byte"),
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3:1", "duplicate key 'a'; first written at a.yaml:1:1"),
    ],
)
def test_what_cannot_be_read_has_a_place(text, place, words):
    """Each fault of the text itself is one problem with line and column."""
    (problem,) = [problem for _, problem in read(text, "a.yaml").problems]
    assert problem.place == place
    assert words in problem.message


def test_nested_aliases_cannot_fill_the_memory():
    """Nine lists of nine aliases each would be 9**9 values."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    document = read("\n".join(lines), "a.yaml")
    assert document.fatal
    assert f"{MAX_VALUES:,}" in document.problems[0][1].message


def test_nested_merge_keys_cannot_take_for_ever():
    """Forty mappings that each merge the one before three times would be 3**40 pairs."""
    lines = [f"m{n}: &b{n + 1} {{<<: [*b{n}, *b{n}, *b{n}], k{n + 1}: 1}}" for n in range(40)]
    document = read("\n".join(["base: &b0 {k0: 1}", *lines]), "a.yaml")
    assert document.fatal
    assert f"stands for more than {MAX_VALUES:,} values" in document.problems[0][1].message


def test_a_mapping_that_is_merged_often_is_still_read():
    """A hundred sections that share fifty values are 5,000 pairs."""
    shared = ", ".join(f"k{n}: {n}" for n in range(50))
    sections = [f"s{n}: {{<<: *shared, own: {n}}}" for n in range(100)]
    document = read("\n".join([f"shared: &shared {{{shared}}}", *sections]), "a.yaml")
    assert document.problems == []
    assert len(document.data["s99"]) == 51


def test_a_duplicate_in_an_anchor_is_told_once():
    """The aliases of a faulty mapping repeat nothing."""
    document = read("a: &a {x: 1, x: 2}\nb: *a\nc: {<<: *a}\n", "a.yaml")
    assert len(document.problems) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("late: by 15", "late: by 15"),
        ("- dash", "- dash"),
        ("", None),
        ("'12'", "12"),
    ],
)
def test_the_value_of_an_override_is_a_scalar_or_a_flow_collection(text, value):
    """What would be a block elsewhere is plain text in an override."""
    assert read_value(text, "override").data == value


def test_paths_are_written_as_people_write_them():
    """Keys are joined by dots, items of lists stand in brackets."""
    assert dotted(("recipe", "config", "sizes", 0)) == "recipe.config.sizes[0]"


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("m: {<<: *base, c: 3}", ["a", "b", "c"]),
        ("m: {c: 3, <<: *base}", ["c", "a", "b"]),
        ("m: {c: 3, <<: *base, b: 4}", ["c", "a", "b"]),
        ("m: {b: 4, <<: *base, c: 3}", ["b", "a", "c"]),
    ],
)
def test_merged_keys_stand_where_the_merge_key_does(text, order):
    """The first of several objectives names the winner, so that order matters."""
    data = read(f"base: &base {{a: 1, b: 2}}\n{text}\n", "a.yaml").data
    assert list(data["m"]) == order
    assert data["m"]["b"] == (4 if "b: 4" in text else 2)
