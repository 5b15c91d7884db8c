"""How a training is doing: its epochs, its learning curve, what it said last."""

import time

from qtpy.QtCore import QTimer, Signal  # pyright: ignore[reportPrivateImportUsage]
from qtpy.QtGui import QFontDatabase
from qtpy.QtWidgets import QPlainTextEdit, QProgressBar, QWidget

from emspatialvae.errors import EmsvaeError
from emspatialvae.jobs.background import Job
from emspatialvae.results.manifest import Manifest
from emspatialvae.results.run_folder import RunDir
from napari_emsvae.qt.background_work import Background
from napari_emsvae.qt.controls import column, words
from napari_emsvae.training.learning_curve import LearningCurveView
from napari_emsvae.training.live_view import Glimpse, LiveView, glimpse
from napari_emsvae.training.settings import Pace, progress_text, tail

LOOK_EVERY_MS = 500
LOG_LINES = 12


class TrainingView(QWidget):
    """Looks at a job twice a second, which reads a few small files; ``ended`` carries the job's last state."""

    ended = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.job: Job | None = None
        self._pace, self._manifest = Pace(), None
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_EVERY_MS)
        self._timer.timeout.connect(self._look)
        self._cancelling = False
        self.message = words("", "How the training is doing", wrap=True)
        self.bar = QProgressBar()
        self.bar.setToolTip("Epochs done")
        self.bar.setFormat("%v of %m epochs")
        self.bar.hide()
        self.curve = LearningCurveView()
        self.curve.hide()
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setToolTip("What the training said last")
        self.log.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.log.setMinimumHeight(80)
        self.live = LiveView()
        self.live.hide()
        self._looking, self._seen = Background(self.say), 0
        layout = column(self.message, self.bar, self.live, self.curve, self.log)
        for place, share in ((2, 3), (3, 3), (4, 2)):
            layout.setStretch(place, share)
        self.setLayout(layout)

    @property
    def is_running(self) -> bool:
        """Whether a training is followed that has not ended."""
        return self._timer.isActive()

    def say(self, text: str, details: str | None = None) -> None:
        """Tell the user something; ``details`` take the log's place."""
        self.message.setText(text)
        if details is not None:
            self._show_log(details, at_end=False)

    def follow(self, job: Job) -> None:
        """Show how a training is doing until it has ended."""
        self.job, self._pace, self._manifest, self._cancelling = job, Pace(), None, False
        self._looking.stop()
        self._seen = 0
        for widget in (self.bar, self.curve):
            widget.show()
        self._timer.start()
        self._look()

    def cancel(self) -> None:
        """End the training early."""
        if self.job is not None:
            self.job.cancel()
            self._cancelling = True
            self.say("cancelling: the training ends after its step, and the results so far are written")

    def wrote_results(self) -> bool:
        """Whether the training came to its results."""
        return self.job is not None and tail(self.job.log, 1).startswith("results: ")

    def _look(self) -> None:
        job = self.job
        assert job is not None
        state = job.poll()
        self._show_log(tail(job.log, LOG_LINES))
        self._show_progress(job)
        self._look_at_model(job)
        if state.kind != "running":
            self._timer.stop()
            self.bar.hide()
            self.ended.emit(state)

    def _show_progress(self, job: Job) -> None:
        try:
            curve = job.progress()
            if curve.epochs and self._manifest is None:
                self._manifest = RunDir(job.out).manifest
        except (OSError, ValueError, EmsvaeError):
            # The new run takes the old one's place, or a line is being written, at this very moment: the next look will see it.
            return
        done = curve.epochs[-1] if curve.epochs else 0
        self.curve.show_curve(curve)
        self._pace.look(done, time.monotonic())
        self._show_epochs(done, self._manifest)
        if not self._cancelling:
            self.say(self._progress(done, self._manifest))

    def _look_at_model(self, job: Job) -> None:
        """Show what a new checkpoint holds; one at a time."""
        try:
            written = (job.out / "checkpoint.pt").stat().st_mtime_ns
        except OSError:
            return
        if self._manifest is not None and written != self._seen and not self._looking.running:
            self._seen = written
            self._looking.start(glimpse, job.out, done=self._show_model)

    def _show_model(self, found: Glimpse) -> None:
        self.live.show_glimpse(found)
        self.live.show()

    def shut(self) -> None:
        """Look no longer."""
        self._timer.stop()
        self._looking.stop()

    def _progress(self, done: int, manifest: Manifest | None) -> str:
        if manifest is None:
            return "preparing the images, then the first epoch; it goes on if napari is closed"
        return progress_text(done, manifest.config.train, manifest.n_particles, self._pace)

    def _show_epochs(self, done: int, manifest: Manifest | None) -> None:
        epochs = None if manifest is None else manifest.config.train.epochs
        self.bar.setMaximum(epochs or 0)  # without an end it moves to and fro
        self.bar.setValue(done if epochs else -1)

    def _show_log(self, text: str, *, at_end: bool = True) -> None:
        if text == self.log.toPlainText():
            return
        self.log.setPlainText(text)
        scroll = self.log.verticalScrollBar()
        if at_end and scroll is not None:
            scroll.setValue(scroll.maximum())
