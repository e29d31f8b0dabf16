"""Filters of strangers: comparisons pass, anything that could do more does not."""

from __future__ import annotations

import pytest

from vlmo.retrieval.filters import check_comparisons

COLUMNS = ["colour", "number", "even", "captions", "größe"]
GOOD = [
    "colour = 'red'",
    "colour = 'it''s; drop table images --'",
    "number >= 3 and number < 1e3",
    "number between -5 and 7.5 or not even",
    "COLOUR IN ('red', 'blue') AND even IS NOT NULL",
    "lower(colour) like '%re%'",
    "array_has(captions, 'a red circle')",
    "`colour` <> 'red' and (even = true)",
    "größe > 1",
    "colour = 'repeat(''a'', 9)'",
]
BAD = [
    ("colour = 'a'; drop table images", "';'"),
    ("colour = 'a' -- and even", "'-'"),
    ("colour.red = 1", "'.'"),
    ("1=1 /* */", "'/'"),
    ("repeat('a', 1000000000) = colour", r"calls repeat\(\)"),
    ("lpad (colour, 2000000000, 'x') = 'a'", r"calls lpad\(\)"),
    ("number in (select number from images)", "names select"),
    ("exists (select 1)", r"calls exists\(\)"),
    ("case when even then 1 else 0 end = 1", "names case"),
    ("cast(number as string) = '1'", r"calls cast\(\)"),
    ("colour::int = 1", "':'"),
    ("colour ~ '(a+)+'", "'~'"),
    ('colour = "a"', 'names "a"'),
    ("path = '/etc/passwd'", "names path"),
    ("colour = 'a", '"\'"'),
    ("colour = 'a\x00'", '"\'"'),
    ("((((((((((((((((((((((((even", "nested"),
    ("even) or (even", "parentheses"),
    ("number = 1 or " * 40 + "even", "500"),
    ("@@version = 1", "'@'"),
    ("number = 0x10", "names x10"),
    ("`repeat`('a', 9) = 'a'", r"calls `repeat`\(\)"),
    ("'repeat'('a', 9) = 'a'", r"calls 'repeat'\(\)"),
    ("repeat/**/('a', 9) = 'a'", "names repeat"),
    ("number + 1 = 2", r"'\+'"),
    ("number - even = 2", "'-'"),
    ("cast (number as string) = '1'", r"calls cast\(\)"),
    ("even = (true", "parentheses"),
]


@pytest.mark.parametrize("where", GOOD)
def test_filter_of_comparisons_passes(where) -> None:
    check_comparisons(where, columns=COLUMNS, max_length=500)


@pytest.mark.parametrize(("where", "reason"), BAD)
def test_filter_with_anything_else_is_refused(where, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        check_comparisons(where, columns=COLUMNS, max_length=500)
