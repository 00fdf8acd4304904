"""Tasks: what is asked and how an answer is judged. No torch here."""

from ladi.tasks.arithmetic import Arithmetic
from ladi.tasks.countdown import Countdown
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.jsonl import Jsonl

TASKS = {"countdown": Countdown, "arithmetic": Arithmetic, "jsonl": Jsonl, "gsm8k": Gsm8k}

TaskConfig = Countdown | Arithmetic | Jsonl | Gsm8k
