"""A chat window: pip install PySide6-Essentials; python desktop_chat.py [MODEL]

The model runs in this process. A thread reads its answer chunk by chunk and hands the text to the window as Qt's
signals, so the window never waits; the button stops the answer and frees its place in the engine.
"""

import sys
from contextlib import closing

from PySide6.QtCore import Qt, QThread, Signal
from PySide6.QtGui import QCloseEvent, QTextCursor
from PySide6.QtWidgets import QApplication, QHBoxLayout, QLineEdit, QPlainTextEdit, QPushButton, QVBoxLayout, QWidget

from cvllm_jax import EngineConfig, Error, InferenceEngine
from cvllm_jax.checkpoints.demo import find_demo_model
from cvllm_jax.openai import ChatCompletionRequest, Message, OpenAIAdapter


class Answer(QThread):
    """One answer on its way from the engine to the window. ``requestInterruption`` ends it early."""

    piece = Signal(str)

    def __init__(self, adapter: OpenAIAdapter, messages: list[Message]) -> None:
        super().__init__()
        self._adapter = adapter
        self._request = ChatCompletionRequest(messages=messages, max_tokens=512)
        self.text = ""
        self.problem = ""

    def run(self) -> None:
        try:
            # closing the chunks before their end ends the request
            with closing(self._adapter.chat_completion_stream_sync(self._request)) as chunks:
                for chunk in chunks:
                    if self.isInterruptionRequested():
                        break
                    piece = chunk.choices[0].delta.content or ""
                    self.text += piece
                    self.piece.emit(piece)
        except Error as error:
            self.problem = str(error)


class ChatWindow(QWidget):
    """What has been said, a line to write in, and a button that sends it or stops the answer."""

    def __init__(self, adapter: OpenAIAdapter) -> None:
        super().__init__(windowTitle=f"Chat with {adapter.engine.model_info().name}")
        self._adapter = adapter
        self._messages: list[Message] = []
        self.answer: Answer | None = None
        """The one that is being written."""
        self.log = QPlainTextEdit(readOnly=True)
        self.entry = QLineEdit(placeholderText="Say something")
        self.button = QPushButton("Send")
        below = QHBoxLayout()
        below.addWidget(self.entry)
        below.addWidget(self.button)
        layout = QVBoxLayout(self)
        layout.addWidget(self.log)
        layout.addLayout(below)
        self.resize(560, 480)
        self.entry.setFocus(Qt.FocusReason.OtherFocusReason)
        self.entry.returnPressed.connect(self.send)
        self.button.clicked.connect(lambda: self.answer.requestInterruption() if self.answer else self.send())

    def send(self) -> None:
        text = self.entry.text().strip()
        if not text or self.answer is not None:
            return
        self.entry.clear()
        self.button.setText("Stop")
        self.write(f"You: {text}\n\nModel: ")
        self.answer = Answer(self._adapter, [*self._messages, Message.user(text)])
        self.answer.piece.connect(self.write)
        self.answer.finished.connect(lambda: self.end(text))
        self.answer.start()

    def end(self, text: str) -> None:
        """Remember the turn, or say why there is none."""
        if not self.answer.problem:
            self._messages += [Message.user(text), Message.assistant(self.answer.text)]
        self.write(f"{self.answer.problem}\n\n")
        self.answer = None
        self.button.setText("Send")

    def write(self, text: str) -> None:
        self.log.moveCursor(QTextCursor.MoveOperation.End)
        self.log.insertPlainText(text)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        if self.answer is not None:
            self.answer.requestInterruption()
            self.answer.wait()
        super().closeEvent(event)


def main() -> None:
    application = QApplication(sys.argv[:1])
    engine = InferenceEngine(EngineConfig(model_path=sys.argv[1] if len(sys.argv) > 1 else find_demo_model()))
    with OpenAIAdapter(engine) as adapter:
        window = ChatWindow(adapter)
        window.show()
        application.exec()


if __name__ == "__main__":
    main()
