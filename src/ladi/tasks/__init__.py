"""Tasks: what is asked and how an answer is judged. No torch here."""

from ladi.tasks.arithmetic import Arithmetic
from ladi.tasks.countdown import Countdown

TASKS = {"countdown": Countdown, "arithmetic": Arithmetic}

TaskConfig = Countdown | Arithmetic
