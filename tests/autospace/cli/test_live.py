"""The screen of long work, drawn into a text."""

import io
import math

from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from autospace.cli.live import Figure, Screen, sparkline

numbers = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=100)


def drawn(screen: Screen) -> str:
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=100, color_system=None).print(screen)
    return file.getvalue()


def test_a_course_rises_from_its_least_to_its_greatest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 2.0]) == "▁▁" and sparkline([]) == ""
    assert sparkline([0, math.nan, 1]) == "▁█"


def test_many_numbers_become_means() -> None:
    assert sparkline([0] * 50 + [1] * 50, width=4) == "▁▁██"


@example(found=[6e305, -1.8e308], width=2)
@example(found=[1.7e308, 1.7e308, 0.0], width=2)
@example(found=[0.0, 5e-324], width=2)
@given(numbers, st.integers(1, 40))
def test_any_numbers_have_a_course(found: list[float], width: int) -> None:
    finite = sum(map(math.isfinite, found))
    assert len(sparkline(found, width)) == min(finite, width)


def test_figures_stand_below_the_bar_and_keep_their_course() -> None:
    screen = Screen("evolving")
    for step in range(4):
        screen.progress(step / 4, f"generation {step}")
        screen.show([Figure("fitness", f"{step}.00", float(step)), Figure("loss", "?", None)])
    lines = drawn(screen).splitlines()
    assert lines[0].startswith("evolving") and "75%" in lines[0] and "generation 3" in lines[0]
    assert lines[1].split() == ["fitness", "3.00", "▁▃▆█"]
    assert lines[2].split() == ["loss", "?"]


def test_markup_in_a_message_is_text() -> None:
    screen = Screen("evolving")
    screen.progress(0.5, "[bold]x[/bold]")
    assert "[bold]x[/bold]" in drawn(screen)
