"""Tests of who hears of the progress where nobody was named."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from trtq.progress import Log, Silent, choose_watcher


def test_without_a_watcher_everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trtq")
    watcher = choose_watcher(None)
    watcher.stage("Comparing", 600)
    watcher.advance(8)
    watcher.note("100 % of the data")
    watcher.warn("look at %s")
    assert [(item.name, item.levelname, item.message) for item in caplog.records] == [
        ("trtq", "INFO", "Comparing"),
        ("trtq", "INFO", "100 % of the data"),
        ("trtq", "WARNING", "look at %s"),
    ]


def test_a_watcher_that_is_given_is_taken() -> None:
    given = Silent()
    assert choose_watcher(given) is given


def test_nothing_is_printed_where_logging_was_not_set_up() -> None:
    code = "from trtq.progress import choose_watcher; choose_watcher(None).warn('a warning')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_stage_that_comes_again_takes_the_time_of_both() -> None:
    log = Log(Silent())
    log.seconds["build"] = 5.0
    with log.timed("build"):
        pass
    assert log.seconds["build"] >= 5.0
