"""What a stage says of its data before it trains."""

from pathlib import Path

import pytest

from ladi.tasks.arithmetic import Arithmetic
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.math import Math
from ladi.train.data import DataConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
MATH_PATH = str(FIXTURES / "math500_test.jsonl")


def test_the_overlap_of_training_and_test_is_printed(capsys):
    DataConfig(task=Gsm8k(path=str(FIXTURES)), num_train=8).check()
    assert capsys.readouterr().out == "0 of 4 test questions also occur in training\n"
    DataConfig(task=Math(train_path=MATH_PATH, test_path=MATH_PATH), num_train=5).check()
    assert capsys.readouterr().out == "5 of 7 test questions also occur in training\n"


def test_an_endless_task_is_not_read_through(capsys):
    DataConfig(task=Arithmetic()).check()
    assert capsys.readouterr().out == ""


def test_too_few_problems_are_refused():
    with pytest.raises(ValueError, match="num_train is 9, but the task has 8"):
        DataConfig(task=Gsm8k(path=str(FIXTURES)), num_train=9).check()
