import dataclasses

import pytest

from vlmo.evaluation.vqa import Question, guessed_metrics, vqa_metrics

EXACT = 1e-12  # a few divisions in double precision


def question(name: str, answers: list[str], *, answer_type: str = "other", question_type: str = "what is") -> Question:
    return Question(
        question_id=name,
        image_id=f"picture of {name}",
        question="what is it?",
        question_type=question_type,
        answer_type=answer_type,
        answers=tuple(answers),
    )


def test_score_is_the_official_accuracy():
    asked = question("1", ["cat"] * 2 + ["dog"] * 8)
    # Leaving out one of the two who say "cat" leaves 1 of 3, the other eight times 2 of 3: (2 * 1/3 + 8 * 2/3) / 10.
    assert asked.score("cat") == pytest.approx(0.6, abs=EXACT)
    assert asked.score("dog") == 1
    assert asked.score("The Dog!") == 1
    assert asked.score("bird") == 0


def test_score_of_one_right_answer_is_whether_it_is_given():
    asked = question("1", ["circle"])
    assert asked.score("circle") == 1
    assert asked.score("rectangle") == 0


def test_score_needs_four_annotators_or_one():
    with pytest.raises(ValueError, match="2 annotators"):
        question("1", ["cat", "dog"]).score("cat")
    with pytest.raises(ValueError, match="0 annotators"):
        question("1", []).score("cat")


def test_metrics_are_means_over_all_and_over_parts():
    questions = [
        question("1", ["yes"] * 10, answer_type="yes/no", question_type="is it"),
        question("2", ["no"] * 10, answer_type="yes/no", question_type="is it"),
        question("3", ["cat"] * 2 + ["dog"] * 8),
        question("4", [], answer_type="", question_type=""),
    ]
    metrics = vqa_metrics(questions, ["yes", "yes", "cat", "whatever"])
    assert metrics == pytest.approx(
        {
            "accuracy": (1 + 0 + 0.6) / 3,
            "accuracy[answer: other]": 0.6,
            "accuracy[answer: yes/no]": 0.5,
            "accuracy[question: is it]": 0.5,
            "accuracy[question: what is]": 0.6,
        },
        abs=EXACT,
    )
    assert next(iter(metrics)) == "accuracy"


def test_metrics_of_unknown_answers_are_refused():
    with pytest.raises(ValueError, match="none of 1 questions has a known answer"):
        vqa_metrics([question("1", [])], ["yes"])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        vqa_metrics([question("1", ["yes"])], [])


def test_guess_is_the_most_frequent_answer_of_each_part():
    questions = [
        question("1", ["yes"], answer_type="yes/no"),
        question("2", ["yes"], answer_type="yes/no"),
        question("3", ["no"], answer_type="yes/no"),
        question("4", ["cat"]),
        question("5", []),
    ]
    guessed = guessed_metrics(questions)
    assert guessed["accuracy"] == 0.5
    assert guessed["accuracy[answer: yes/no]"] == pytest.approx(2 / 3, abs=EXACT)
    assert guessed["accuracy[answer: other]"] == 1
    assert guessed.keys() == vqa_metrics(questions, ["yes"] * 5).keys()


def test_score_without_the_annotators_words_is_the_answers_own():
    asked = dataclasses.replace(question("1", []), soft_scores={"cat": 0.6, "dog": 1.0})
    assert [asked.score(answer) for answer in ("cat", "dog", "bird")] == [0.6, 1.0, 0.0]
    other = dataclasses.replace(question("2", []), soft_scores={"cat": 0.9})
    unknown = question("3", [])
    metrics = vqa_metrics([asked, other, unknown], ["dog", "dog", "dog"])
    assert metrics["accuracy"] == pytest.approx(0.5, abs=EXACT)
    # "cat" has 0.6 and 0.9, "dog" 1.
    assert guessed_metrics([asked, other, unknown])["accuracy"] == pytest.approx(0.75, abs=EXACT)


def test_score_keeps_to_the_annotators_where_there_are_both():
    asked = dataclasses.replace(question("1", ["cat"] * 10), soft_scores={"dog": 1.0})
    assert (asked.score("cat"), asked.score("dog")) == (1, 0)
