"""What a person or a log sees while an audit runs."""

import io

from rich.console import Console

from workflows.progress import BarProgress, LineProgress, SilentProgress, progress_on


def test_a_pipe_gets_lines_and_a_script_gets_silence() -> None:
    assert isinstance(progress_on(io.StringIO()), LineProgress)
    assert isinstance(progress_on(io.StringIO(), silent=True), SilentProgress)


def test_a_stage_says_its_size_and_at_the_end_what_was_done() -> None:
    stream = io.StringIO()
    with LineProgress(stream) as progress:
        progress.start("profile", 2000)
        progress.advance("profile", 1500)
        progress.advance("profile", 500)
        progress.finish("profile")
    first, last = stream.getvalue().splitlines()
    assert first == "profile: 2,000 images"
    assert last.startswith("profile: done, 2,000 images in ")


def test_lines_come_at_intervals_and_not_for_every_shard() -> None:
    often, seldom = io.StringIO(), io.StringIO()
    for stream, every in ((often, 0.0), (seldom, 3600.0)):
        with LineProgress(stream, every=every) as progress:
            progress.start("maps", 10)
            for _ in range(10):
                progress.advance("maps")
            progress.finish("maps")
    assert "maps: 7 of 10 images, " in often.getvalue()
    assert len(seldom.getvalue().splitlines()) == 2


def test_a_terminal_gets_a_bar_and_notes_are_not_read_as_markup() -> None:
    stream = io.StringIO()
    with BarProgress(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress.start("catalogue", 3, "files")
        progress.advance("catalogue", 3)
        progress.note("the batch was halved [to 8]")
        progress.finish("catalogue")
    assert "3/3" in stream.getvalue()
    assert "the batch was halved [to 8]" in stream.getvalue()
