"""Values set within JSON that has comments: they are there, and all else is as it was."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.cli.launch.jsonc import Among, merged, plain
from localrun.errors import UsageError

WANTED = {"models": {"localrun": {"url": "http://x", "list": Among({"id": "a"}, {"size": 1})}}}


def parsed(text: str) -> Any:
    """By a parser of its own: comments and trailing commas away, then Python's."""
    strings = r'"(?:[^"\\]|\\.)*"'
    bare = re.sub(
        rf"({strings})|//[^\n]*|/\*.*?\*/",
        lambda found: found.group(1) or " ",
        text.lstrip("\ufeff"),
        flags=re.DOTALL,
    )
    return json.loads(
        re.sub(rf"({strings})|,(?=\s*[\]}}])", lambda found: found.group(1) or "", bare)
    )


COMMENTED = """// Zed settings
{
    /* how it looks */
    "theme": "One Dark", // dark
    "models": {
        // mine
        "other": {"url": "https://y", "list": [1, 2,],},
    },
    "last": true // and out
    // the end
}
"""

FILES = {
    "nothing": "",
    "blank": " \n\n",
    "comments alone": "// later\n",
    "a comment without an end of line": "// later",
    "an empty object": "{}",
    "an object with a comment": "{ // empty\n}",
    "one line": '{"theme": "x"}',
    "tabs": '{\n\t"theme": "x"\n}\n',
    "a trailing comma": '{"theme": "x",}',
    "comments": COMMENTED,
    "a byte order mark": '\ufeff{"theme": "x"}',
    "our own, older": '{"models": {"localrun": {"url": "http://old", "list": [{"id": "b"}]}}}',
    "our own, commented": (
        '{"models": {"localrun": { // ours\n "url": "http://old", /* a */ "list": []}}}'
    ),
    "braces in strings": '{"a": "} // no comment {", "b": "\\"]"}',
    "a key that stands twice": '{"models": {}, "models": {"kept": 1}}',
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_what_is_wanted_is_there_and_all_else_stays(text: str) -> None:
    after = merged(text, WANTED)

    document = parsed(after)
    ours = document["models"]["localrun"]
    assert ours["url"] == "http://x"
    assert {"id": "a", "size": 1} in ours["list"]
    before = parsed(text) if "{" in text else {}
    for key in before.keys() - {"models"}:
        assert document[key] == before[key]
    for comment in re.findall(r"// [a-z]+|/\* [a-z ]+\*/", text):
        assert comment in after
    assert merged(after, WANTED) == after


def test_a_commented_file_changes_in_the_one_place() -> None:
    after = merged(COMMENTED, {"models": {"localrun": {"url": "http://x"}}})

    new = '        "localrun": {\n            "url": "http://x"\n        }\n'
    assert after == COMMENTED.replace("],},\n", "],},\n" + new)


def test_a_comma_goes_behind_the_value_and_not_behind_its_comment() -> None:
    after = merged('{\n  "a": 1 // one\n}\n', {"b": 2})

    assert after == '{\n  "a": 1, // one\n  "b": 2\n}\n'


def test_the_ends_of_lines_stay_those_of_the_file() -> None:
    after = merged('{\r\n  "a": 1\r\n}\r\n', {"b": {"c": 2}})

    assert after == '{\r\n  "a": 1,\r\n  "b": {\r\n    "c": 2\r\n  }\r\n}\r\n'


def test_an_element_of_an_array_is_found_by_what_it_is() -> None:
    entry = Among({"vendor": "custom", "name": "us"}, {"models": Among({"id": "m"}, {"size": 2})})
    text = '[{"vendor": "custom", "name": "them"}, {"name": "us", "vendor": "custom", "key": "k"}]'

    once = merged(text, entry)
    other = merged(once, Among(entry.match, {"models": Among({"id": "n"}, {"size": 3})}))

    assert json.loads(other) == [
        {"vendor": "custom", "name": "them"},
        {
            "name": "us",
            "vendor": "custom",
            "key": "k",
            "models": [{"id": "m", "size": 2}, {"id": "n", "size": 3}],
        },
    ]


BROKEN = {
    "no end": '{"a": 1',
    "no comma": '{"a": 1 "b": 2}',
    "no colon": '{"a" 1}',
    "a bare key": "{a: 1}",
    "two documents": "{} {}",
    "an open comment": "{} /* ",
    "an open string": '{"a": "b\n}',
    "a word": '{"a": nothing}',
    "deep": "[" * 100 + "]" * 100,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_json_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"line [12] is no JSON"):
        merged(text, WANTED)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "the document is not an object"),
        ('{"models": 1}', "models is not an object"),
        ('{"models": {"localrun": {"list": {}}}}', "models.localrun.list is not an array"),
    ],
)
def test_what_stands_where_settings_belong_is_named(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        merged(text, WANTED)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(
    st.text(max_size=4).filter(lambda key: key != "models"), VALUES, max_size=4
)


@given(document=DOCUMENTS, indent=st.sampled_from([None, 2, "\t"]))
def test_any_document_is_kept_beside_what_is_added(
    document: dict[str, Any], indent: int | str | None
) -> None:
    after = merged(json.dumps(document, indent=indent), WANTED)

    assert json.loads(after) == document | plain(WANTED)
