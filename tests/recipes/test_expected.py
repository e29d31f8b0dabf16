"""README and recipes tell of the quickstart what `vlmo/recipes/quickstart.json` holds.

`python -m tests.recipes.test_expected` writes the rows of README's table.
"""

from pathlib import Path

from vlmo.demo.quickstart import BLIND, CHANCE
from vlmo.recipes import describe
from vlmo.recipes.expected import DUAL, FUSION, over_seeds, quickstart_runs, which_runs

README = Path(__file__).parents[2] / "README.md"
ROWS = {
    "text to image, R@1 among 1,000": "Text to image R@1",
    "image to text, R@1": "Image to text R@1",
    "which of two captions is true: another shape": "Caption or one with another shape",
    "another color": "Caption or one with another color",
    "left or right, above or below": "Caption or one with the opposite side",
    "two swapped": "Caption or one with two swapped",
    "questions": "Questions",
    "statements about two scenes": "Two scenes, true or false",
}


def rows() -> dict[str, str]:
    """Lines of README's table by their first cell."""
    found, lines = quickstart_runs()["summary"], {}
    for label, row in ROWS.items():
        dual = over_seeds(DUAL, row) if row in found[DUAL] else ""
        chance, blind = (found[name].get(row, {}).get("median") for name in (CHANCE, BLIND))
        told = f"{100 * chance:.1f}" + (f"; most frequent answers {100 * blind:.1f}" if row == "Questions" else "")
        lines[label] = f"| {label} | {dual} | {over_seeds(FUSION, row)} | {told} |"
    return lines


def test_readme_has_the_quickstarts_numbers() -> None:
    runs = quickstart_runs()
    assert set(ROWS.values()) == set(runs["summary"][FUSION])
    assert runs["commit"]
    assert f"of {len(runs['seeds'])} seeds ({', '.join(runs['seeds'])})" in README.read_text(encoding="utf-8")
    shown = README.read_text(encoding="utf-8").splitlines()
    assert [line for line in rows().values() if line not in shown] == []


def test_recipes_have_the_quickstarts_numbers() -> None:
    told = " ".join(describe("shapes-matching").split())
    for column, row in ((DUAL, "Text to image R@1"), (FUSION, "Caption or one with the opposite side")):
        assert over_seeds(column, row) in told
    assert over_seeds(FUSION, "Questions") in " ".join(describe("shapes-questions").split())
    assert which_runs() in told


if __name__ == "__main__":
    lines = README.read_text(encoding="utf-8").splitlines()
    README.write_text("".join(f"{rows().get(line[2:].partition(' | ')[0], line)}\n" for line in lines), "utf-8")
