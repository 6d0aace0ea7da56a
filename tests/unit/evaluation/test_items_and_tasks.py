"""How data become items: places, splits, labels, answers; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.errors import InputError
from sae_runtime.evaluation.items import by_group, detokenised, drawn, letter, options
from sae_runtime.evaluation.tasks import TASKS, task_named
from sae_runtime.evaluation.tasks.maths import (
    SEVERAL,
    Svamp,
    equation_label,
    last_number,
    needed_numbers,
    numbers_label,
)

words = st.lists(
    st.text("abc", min_size=1, max_size=4) | st.sampled_from([",", ".", "n't", "'s", "(", ")"]), min_size=1
)


@given(words, st.data())
def test_the_word_asked_about_stands_at_its_place(tokens: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(tokens) - 1))
    text, start, end = detokenised(tokens, index)
    assert text[start:end] == tokens[index]
    assert text.replace(" ", "") == "".join(tokens)


@given(st.text(max_size=20))
def test_a_group_always_falls_into_the_same_split(group: str) -> None:
    assert by_group(group, dev=0.3) == by_group(group, dev=0.3)
    assert by_group(group, dev=0.0) == "test"


def test_about_the_wanted_share_of_groups_is_for_choices() -> None:
    assert sum(by_group(f"g{n}", dev=0.2) == "dev" for n in range(2000)) == pytest.approx(400, abs=60)


def test_options_are_listed_with_their_letters() -> None:
    assert options(["yes", "no"]) == "\nA. yes\nB. no\nAnswer with A or B."
    assert options(["x", "y", "z"]).endswith("Answer with A, B or C.")
    assert letter(["yes", "no"], "no") == "B"


@pytest.mark.parametrize(
    ("equation", "label"),
    [
        ("( 76.0 - 25.0 )", "subtraction"),
        ("3 + 4 + 5", "addition"),
        ("( 8.0 / 2.0 )", "division"),
        ("2 * 3 - 1", SEVERAL),
        ("7", None),
    ],
)
def test_an_equation_names_its_operation(equation: str, label: str | None) -> None:
    assert equation_label(equation) == label


@pytest.mark.parametrize(
    ("problem", "answer", "label"),
    [
        ("Tom has 7 and 5 apples.", 12, "addition"),
        ("Of 7 apples 5 were eaten.", 2, "subtraction"),
        ("1,200 boxes of 3.", 3600, "multiplication"),
        ("2 and 2", 4, None),  # a sum and a product
        ("7 and 5", 99, None),
    ],
)
def test_numbers_name_the_only_operation_that_gives_the_answer(problem: str, answer: float, label: str | None) -> None:
    assert numbers_label(problem, answer) == label


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("First 3, then 4.\nThe answer is 12.", 12),
        ("The answer is $1,250.50 in total for 3 people", 1250.5),
        ("So there are 3 boxes of 4", 4),
        ("The answer is -7.", -7),
        ("It is 5-3", 3),
        ("none", None),
    ],
)
def test_the_number_after_the_last_answer_counts(text: str, number: float | None) -> None:
    assert last_number(text) == number


def svamp_folder(tmp_path: Path, count: int = 200) -> Path:
    """A data folder with made-up problems in the formats of SVAMP, ASDiv, MAWPS and GSM8K."""
    root = tmp_path / "math"
    rows = [
        {"ID": f"c-{n}", "Body": f"Ann has {n + 5} pens and loses {n + 1}", "Question": "How many pens are left?",
         "Equation": f"( {n + 5} - {n + 1} )", "Answer": 4.0, "Type": "Subtraction"}
        for n in range(count)
    ]  # fmt: skip
    files = {
        "svamp/svamp_1_700.json": json.dumps(rows),
        "asdiv_nc/asdiv.jsonl": "\n".join(
            json.dumps(
                {
                    "idx": n,
                    "body": f"{n} cats and 3 dogs.",
                    "question": "How many animals?",
                    "formula": f"{n}+3={n + 3}",
                }
            )
            for n in range(60)
        ),
        "gsm8k/train.jsonl": json.dumps({"question": "A has 2. B has 3. How many?", "answer": "2+3\n#### 5"}),
    }
    for part in ("singleop", "addsub", "singleeq", "multiarith"):
        files[f"mawps/{part}.jsonl"] = json.dumps(
            {"input": "Bo has 9 figs. He eats 4. How many remain?", "target": 5.0}
        )
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return tmp_path


def test_svamp_problems_fall_into_three_parts_and_say_where_the_question_stands(tmp_path: Path) -> None:
    items = Svamp({"test": 50}).load(svamp_folder(tmp_path))
    assert len({item.id for item in items}) == len(items)
    assert {item.split for item in items} == {"fit", "dev", "test"}
    assert sum(item.split == "test" and not item.part_of for item in items) == 50
    item = next(item for item in items if item.split == "test")
    assert item.prompt[slice(*item.spots["asked"])] == "How many pens are left?"
    assert (item.label, item.gold, item.asked) == ("subtraction", "4", True)
    assert not next(item for item in items if item.split == "fit").asked


def test_notes_write_out_the_equation_of_the_numbers_that_were_read_as_needed(tmp_path: Path) -> None:
    task = Svamp()
    items = {item.id: item for item in task.load(svamp_folder(tmp_path))}
    item = items["svamp-c-30"]
    parts = [part for part in items.values() if part.part_of == item.id]
    assert [(part.mention, part.label) for part in parts] == [("35", "needed"), ("31", "needed")]
    assert all(part.prompt[slice(*part.spots["number"])] == part.mention and not part.asked for part in parts)
    assert item.details == ("35", "31")  # the truth, which only the oracle says
    told = task.told(item, [(parts[0], 0.9), (parts[1], 0.2)])
    assert told.details == ("35", "31")  # never fewer than two
    third = replace(parts[0], mention="7")
    told = task.told(item, [(parts[0], 0.1), (parts[1], 0.9), (third, 0.6)])
    assert told.details == ("31", "7")
    assert task.note("equation", "subtraction", told) == "This is solved by 31 - 7."
    assert task.note("numbers", "subtraction", told) == "Only these numbers are needed: 31 and 7."
    assert task.note("equation", "several", told) == "This takes more than one operation on 31 and 7."
    unknown = replace(item, details=())
    assert task.note("equation", "subtraction", unknown) == task.note("operation", "subtraction", unknown)


@pytest.mark.parametrize(
    ("label", "gold", "equation", "needed"),
    [
        ("addition", 5, "", ("2", "3")),
        ("addition", 5, "2 + 3", ("2", "3")),
        ("several", 20, "", ("2", "3", "4")),
        ("division", 99, "", ()),
        ("subtraction", 1, "( 4.0 - 3.0 )", ("3", "4")),
    ],
)
def test_needed_numbers_follow_from_the_equation_or_from_the_answer(
    label: str, gold: float, equation: str, needed: tuple[str, ...]
) -> None:
    assert needed_numbers("2 pens, 3 pens and 4 caps", label, gold, equation) == needed


def test_a_draw_is_the_same_every_time(tmp_path: Path) -> None:
    items = Svamp().load(svamp_folder(tmp_path))
    assert drawn(items, {"test": 20}) == drawn(items, {"test": 20})


@pytest.mark.parametrize("name", [name for name in TASKS if name != "table"])
def test_absent_data_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no .*docs/evidence.md"):
        TASKS[name]().load(tmp_path)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match=r"no task 'chess'.*mohx"):
        task_named("chess", {})


CSV = "split,prompt,mention,labels,label\nfit,I sat on the bank.,bank,river;money,river\n{row}\n"


def test_a_table_of_ones_own_becomes_items(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV.format(row="test,The bank is shut.,bank,river;money,money"), "utf-8")
    fit, test = task_named("table", {}).load(path)
    assert test.prompt == "The bank is shut.\nA. river\nB. money\nAnswer with A or B."
    assert test.prompt[slice(*test.spots["after"])] == "bank is shut."
    assert (test.gold, fit.asked, test.asked) == ("B", False, True)
    assert task_named("table", {}).note("means", "money", test) == 'Here "bank" means: money.'


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("new,The bank.,bank,river;money,money", "row 2: the split 'new'"),
        ("test,The bank.,bank,river;money,sea", "row 2: the label 'sea'"),
        ("test,The bank.,shore,river;money,money", "row 2: the mention 'shore'"),
    ],
)
def test_a_wrong_row_is_named(row: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV.format(row=row), "utf-8")
    with pytest.raises(InputError, match=fault):
        task_named("table", {}).load(path)


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("split,prompt\n", "utf-8")
    with pytest.raises(InputError, match="no column label, labels, mention"):
        task_named("table", {}).load(path)
