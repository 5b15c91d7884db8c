"""The training form: a dock widget that starts `emsvae train` in a process of its own, shows how far it is, and opens the result."""

from dataclasses import replace
from pathlib import Path

import napari
from napari.utils import notifications
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QFileDialog, QGridLayout, QScrollArea, QSplitter, QWidget

from emspatialvae import config as configuration
from emspatialvae.config import PRESETS, InputConfig, PrepareConfig, RunConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.jobs import background as jobs
from emspatialvae.jobs.background import Job, State
from emspatialvae.results.run_folder import RunDir, default_out
from napari_emsvae.explorer.pictures.stage import tag
from napari_emsvae.qt.background_work import Background
from napari_emsvae.qt.controls import button, choice, column, field, row, words
from napari_emsvae.qt.messages import in_the_window
from napari_emsvae.qt.window import fit_into_screen
from napari_emsvae.training.progress_view import TrainingView
from napari_emsvae.training.settings import NOTHING, config_of
from napari_emsvae.training.settings_form import SettingsForm

FOR_ALL_PX = 520
"""Height of the settings when all are unfolded."""
SPARE_PX = 8
"""Room for what a style puts round a scroll bar."""
LIVE_MINUTES = 0.1
"""Between checkpoints of a training that is looked at."""
STOP, REPLACE, GO_ON = "stop", "replace the run", "go on with the run"


class TrainForm(QWidget):
    """See the module. The training outlives the form and napari: choose its run folder again to see how it is doing."""

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self.viewer = viewer = napari_viewer
        self._base = RunConfig(InputConfig(Path()))
        self._out_is_default = True
        self._folded: list[int] = []
        self._describing = Background(self.fail)
        self.settings, self.training = SettingsForm(self._base), TrainingView()
        self.training.ended.connect(self._ended)
        self._build()
        self._enable(running=False)
        shut = self._describing.stop, self.training._looking.stop
        self.destroyed.connect(lambda: [stop() for stop in shut])
        active = viewer.layers.selection.active
        for layer in [*([] if active is None else [active]), *viewer.layers]:
            if tag(layer).get("kind") == "particles":
                self.set_particles(Path(tag(layer)["source"]))
                break

    # ------------------------------------------------------------------------------------------------------- building

    def _build(self) -> None:
        above, below = QWidget(), QWidget()
        layout = column(self.settings, None)
        layout.setContentsMargins(0, 0, 8, 0)
        above.setLayout(layout)
        self.describe_button = button(
            "What would train do?",
            "Read the particle file and say what is in it and what would be assumed",
            self.describe,
        )
        self.start_button = button("Start", "Start training, in a process of its own", self.start)
        self.cancel_button = button(
            "Cancel", "End the training after its present step; the results so far are written", self.cancel
        )
        self.attach_button = button(
            "Attach",
            "Follow the training that was started for this run folder, say before napari was closed",
            self.attach,
        )
        buttons = row(self.describe_button, None, self.attach_button, self.cancel_button, self.start_button)
        below.setLayout(column(buttons, self.training))
        self.scroll_area = QScrollArea()
        self.scroll_area.setWidgetResizable(True)
        self.scroll_area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.scroll_area.setFrameShape(QScrollArea.Shape.NoFrame)
        self.scroll_area.setWidget(above)
        self.split = QSplitter(Qt.Orientation.Vertical)
        self.split.addWidget(self.scroll_area)
        self.split.addWidget(below)
        self.split.setChildrenCollapsible(False)
        self.split.setStretchFactor(1, 1)
        self.settings.more.toggled.connect(self._make_room)
        whole = column(self._files(), self.split)
        whole.setContentsMargins(6, 6, 6, 6)
        self.setLayout(whole)

    def showEvent(self, a0: QShowEvent | None) -> None:
        """Give the settings the width that they need in napari's style, which is known only now."""
        super().showEvent(a0)
        content, bar = self.scroll_area.widget(), self.scroll_area.verticalScrollBar()
        if content is not None and bar is not None:
            self.scroll_area.setMinimumWidth(content.minimumSizeHint().width() + bar.sizeHint().width() + SPARE_PX)
            QTimer.singleShot(0, lambda: fit_into_screen(self))
            if not self._folded:
                self._folded = [content.sizeHint().height(), self.split.height()]
                self.split.setSizes(self._folded)

    def _make_room(self, for_all: bool) -> None:
        """More height for the settings while all are unfolded."""
        if for_all:
            self._folded = self.split.sizes()
        self.split.setSizes([FOR_ALL_PX, max(1, self.split.height() - FOR_ALL_PX)] if for_all else self._folded)

    def _files(self) -> QGridLayout:
        self.particles = field("particles.star, .cs or .mrcs", "The particles to learn from")
        self.particles.editingFinished.connect(self._particles_chosen)
        self.out = field("a folder that need not exist yet", "Where the run goes")
        self.out.textEdited.connect(self._out_edited)
        self.out.editingFinished.connect(self._out_chosen)
        self.exists = choice(
            (STOP, REPLACE, GO_ON),
            "When the run folder is there already: stop, replace it,\n"
            "or go on with a run that was cut short, with its own settings",
        )
        presets = (NOTHING, *PRESETS)
        tip = "paper: the settings of the spatial-VAE paper; they show in the fields below"
        self.preset = choice(presets, tip, self._preset_chosen)
        made = QGridLayout()
        made.setContentsMargins(0, 0, 0, 0)
        for line, (name, target, tip, ask) in enumerate(
            (
                ("particles", self.particles, "Choose the particle file", self._ask_for_particles),
                ("run folder", self.out, "Choose where the run goes", self._ask_for_out),
            )
        ):
            made.addWidget(words(name, target.toolTip()), line, 0)
            made.addWidget(target, line, 1)
            made.addWidget(button("Choose\N{HORIZONTAL ELLIPSIS}", tip, ask), line, 2)
        made.addWidget(words("if it exists", self.exists.toolTip()), 2, 0)
        made.addLayout(row(self.exists, words("preset", self.preset.toolTip()), self.preset, None), 2, 1, 1, 2)
        return made

    def _enable(self, *, running: bool) -> None:
        self.start_button.setEnabled(not running)
        self.attach_button.setEnabled(not running)
        self.cancel_button.setEnabled(running)

    # ------------------------------------------------------------------------------------------------- what is chosen

    def _ask_for_particles(self) -> None:
        kinds = "Particles (*.star *.cs *.mrcs)"
        chosen, _ = QFileDialog.getOpenFileName(self, "The particles", self.particles.text(), kinds)
        if chosen:
            self.set_particles(Path(chosen))

    def _ask_for_out(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Where the run goes", str(Path(self.out.text()).parent))
        if chosen:
            self.set_out(Path(chosen))

    def set_particles(self, path: Path) -> None:
        """Choose the particle file; unless a run folder was chosen, it is one beside it."""
        self.particles.setText(str(path))
        self._particles_chosen()

    def set_out(self, path: Path) -> None:
        """Choose the run folder; a training that is at work there is followed."""
        self._out_is_default = False
        self.out.setText(str(path))
        self._out_chosen()

    def _particles_chosen(self) -> None:
        if self.particles.text() and self._out_is_default:
            path = Path(self.particles.text()).expanduser().absolute()
            self.out.setText(str(path.with_name(default_out(path).name)))
            self._out_chosen()

    def _out_edited(self, _: str) -> None:
        self._out_is_default = False

    def _out_chosen(self) -> None:
        if self.out.text().strip() and not self.training.is_running:
            job = jobs.attach(self._folder())
            if job is not None and job.poll().kind == "running":
                self.follow(job)

    def _preset_chosen(self, name: str) -> None:
        plain = RunConfig(InputConfig(Path()))
        self._base = plain if name == NOTHING else configuration.with_preset(plain, name)
        self.settings.set_base(self._base)

    def _folder(self) -> Path:
        if not self.out.text().strip():
            raise EmsvaeError("choose a run folder first")
        return Path(self.out.text().strip()).expanduser().absolute()

    def _config(self) -> RunConfig:
        """What was asked for.

        Raises
        ------
        EmsvaeError
            The particle file is missing, or what was typed is no value.
        """
        if not self.particles.text().strip():
            raise EmsvaeError("choose a particle file first: .star (RELION), .cs (cryoSPARC) or .mrcs")
        particles = Path(self.particles.text().strip()).expanduser().absolute()
        if not particles.is_file():
            raise ParticleFileError(f"{particles}: no such file; choose a particle file: .star, .cs or .mrcs")
        return config_of(particles, self._base, self.settings.typed())

    def _config_to_go_on(self, out: Path) -> RunConfig:
        """The run's own settings; only how long to train may differ."""
        own, typed = RunDir(out).manifest.config, self.settings.typed()
        return config_of(own.input.particles, own, {key: typed[key] for key in ("train.epochs", "train.max_epochs")})

    # ------------------------------------------------------------------------------------------------------- training

    def describe(self) -> None:
        """Say what is in the particle file, and what training would do with it."""
        try:
            config = self._config()
        except EmsvaeError as error:
            self.fail(str(error))
            return
        self.training.say("reading the particle file \N{HORIZONTAL ELLIPSIS}")
        self._describing.start(_describe, config.input, config.prepare, done=self._described)

    def _described(self, text: str) -> None:
        self.training.say("what train would do:", text)

    def start(self) -> None:
        """Start training."""
        try:
            out, wanted = self._folder(), self.exists.currentText()
            config = self._config_to_go_on(out) if wanted == GO_ON else self._config()
            if not self.settings.typed()["train.checkpoint_minutes"]:
                # The view of the model lives on checkpoints: about one an epoch.
                config = replace(config, train=replace(config.train, checkpoint_minutes=LIVE_MINUTES))
            job = jobs.start(config, out, force=wanted == REPLACE, resume=wanted == GO_ON)
        except (EmsvaeError, OSError) as error:
            self.fail(str(error))
            return
        self.follow(job)

    def attach(self) -> None:
        """Follow the training of the chosen run folder, or open its result."""
        try:
            job = jobs.attach(self._folder())
        except EmsvaeError as error:
            self.fail(str(error))
            return
        if job is None:
            self.fail(
                f"no training was started in a window for {self._folder()}; a run is opened in the Latent explorer"
            )
        else:
            self.follow(job)

    def follow(self, job: Job) -> None:
        """Show how a training is doing, and open its result when it has ended."""
        self.out.setText(str(job.out))
        self._show_settings_of(job)
        self._enable(running=True)
        self.training.follow(job)

    def _show_settings_of(self, job: Job) -> None:
        """The form shows what the job was started with, not what would be the default."""
        config = job.config()
        if config is None:
            return
        self._out_is_default = False
        self.particles.setText(str(config.input.particles))
        self._base = config
        self.preset.setCurrentText(NOTHING)
        self.settings.set_base(config)

    def cancel(self) -> None:
        """End the training early."""
        self.cancel_button.setEnabled(False)
        self.training.cancel()

    def _ended(self, state: State) -> None:
        self._enable(running=False)
        job = self.training.job
        assert job is not None
        if state.kind == "failed":
            self.fail(state.reason)
        elif self.training.wrote_results():
            early = " early, with the results so far" if state.kind == "interrupted" else ""
            self.training.say(f"ended{early}: {job.out}")
            self.open_result(job.out)
        else:
            self.training.say("ended before there was a result")

    def open_result(self, run: Path) -> None:
        """Open a run: in the Latent explorer beside this form, and as layers."""
        for layer in [layer for layer in self.viewer.layers if tag(layer).get("run") == str(run)]:
            self.viewer.layers.remove(layer)  # of an older run in the same folder
        dock, explorer = self.viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer", tabify=True)
        explorer.open(run)
        dock.show()
        dock.raise_()
        try:
            self.viewer.open(str(run), plugin="emspatialvae")
        except EmsvaeError as error:
            self.fail(str(error))

    def fail(self, text: str) -> None:
        """Say what went wrong: here and as napari's notification. The viewer lives on."""
        text = in_the_window(text)
        self.training.say(f"\N{WARNING SIGN} {text}")
        notifications.show_error(text)


def _describe(source: InputConfig, prepare: PrepareConfig) -> str:
    from emspatialvae.workflows.info import particles_text

    return particles_text(source, prepare)
