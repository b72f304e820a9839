"""examples/desktop_chat.py in a window on Qt's offscreen platform."""

import os
import time

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("PySide6.QtWidgets", reason="needs PySide6-Essentials", exc_type=ImportError)

import shiboken6
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication


@pytest.fixture(scope="module")
def application():
    application = QApplication([])
    yield application
    shiboken6.delete(application)  # now: at the end of the process Qt's objects go in any order


@pytest.fixture
def window(application, load_example, adapter):
    window = load_example("desktop_chat").ChatWindow(adapter)
    window.show()
    yield window
    window.close()
    shiboken6.delete(window)


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        QTest.qWait(5)


def ask(window, text):
    QTest.keyClicks(window.entry, text)
    QTest.keyClick(window.entry, Qt.Key.Key_Return)


def press(window):
    QTest.mouseClick(window.button, Qt.MouseButton.LeftButton)


def test_text_appears_while_it_is_made(window):
    ask(window, "talk at length")
    assert window.button.text() == "Stop"
    seen = set()
    wait_for(lambda: seen.add(len(window.log.toPlainText())) or window.answer is None)
    assert len(seen) > 3
    assert window.log.toPlainText().startswith("You: talk at length\n\nModel: word word")
    assert window.button.text() == "Send"


def test_the_button_stops_an_answer(window, adapter):
    ask(window, "talk at length")
    wait_for(lambda: "word" in window.log.toPlainText())
    press(window)
    wait_for(lambda: window.answer is None)
    assert window.log.toPlainText().count("word") < 100
    ask(window, "number 1")
    wait_for(lambda: window.answer is None)
    assert window.log.toPlainText().endswith("Model: A number.\n\n")


def test_a_question_that_is_refused_leaves_no_trace(window):
    window.entry.setText("hi " * 9000)
    press(window)
    wait_for(lambda: window.answer is None)
    assert "tokens" in window.log.toPlainText()
    ask(window, "number 1")
    wait_for(lambda: window.answer is None)
    assert window.log.toPlainText().endswith("Model: A number.\n\n")


def test_closing_the_window_ends_the_answer(window):
    ask(window, "talk at length")
    wait_for(lambda: "word" in window.log.toPlainText())
    window.close()  # the fixture then requires that no request is left
