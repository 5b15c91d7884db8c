"""Training of the steerable engine."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from emspatialvae.model.batch import Batch
from emspatialvae.model.layers import resized_latents
from emspatialvae.model.steerable.inference import Refined
from emspatialvae.model.steerable.initialise import CONSENSUS_PARTICLES, LEAST_NOISE, find_consensus
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.model.steerable.template_start import start_from_templates, teach_decoder, template_count
from emspatialvae.training.latent_count import FEWEST_EPOCHS, LatentTrials
from emspatialvae.training.objective import Rows
from emspatialvae.training.particle_table import ParticleTable
from emspatialvae.training.search_templates import search_templates
from emspatialvae.training.table_objective import DRAWS, TableObjective
from emspatialvae.training.unfold import unfolded

SEARCH_EPOCHS = (0, 2, 4)
"""Poses are searched everywhere before these epochs: with the consensus, then with the decoder's images as soon as there are some,"""
SEARCH_EVERY = 8
"""and every so many epochs later."""
SEARCH_FIRST = 1000
"""Particles that are searched before the others where all have poses already. The others follow only if these have found better ones:"""
WORTH_SHARE, WORTH_GAIN, BETTER_NATS = 0.02, 4e-3, 1.0
"""more than that share by so many nats, or on average more than that part of the evidence."""
NOISE_EPOCHS = 6
"""Noise is measured again before each of the first epochs; then it stays, so that ELBOs can be compared."""
NOISE_PARTICLES = 2000
ANCHOR_PARTICLES = 2000
GAUGE_PARTICLES = 4000
LANDMARKS = 1000
"""Particles by whose images z is laid out anew."""
TEMPLATE_PARTICLES, JUDGES = 6000, 500
"""Particles that templates are made of at the start, at most, and others that tell whether they are better than one consensus."""
FALLBACK_LATENTS = 2
"""Latent coordinates where nobody says how many and nothing can be tried: nothing is held out, or the training is short."""
MANY_DRAWS = 16
LITTLE_EVIDENCE = 6.0
"""Nats per particle, of the consensus over noise alone, below which many latents are drawn. The encoder then has next to nothing to
learn from, and with a loose bound z stays closed: it is the sum over latents that teaches the decoder."""
EVIDENCE_PARTICLES = 1000
LEAST_SHIFT_SD_PX = 0.3
TRIAL_SEARCH = 2
"""Epochs after the beginning of a trial of more latent coordinates before poses are searched everywhere again."""
NEVER = 1_000_000
"""An epoch that no training reaches."""


class SearchedObjective(TableObjective):
    """The steerable engine: a table of poses, searched everywhere now and then and nearby in every step."""

    unsettled_epochs = noise_until = NOISE_EPOCHS
    searches: frozenset[int] = frozenset(SEARCH_EPOCHS)
    """Epochs (from 0) before which poses are searched everywhere, beside every `SEARCH_EVERY`-th."""
    trials: LatentTrials | None = None
    evidence: float = math.nan
    """Of the consensus over noise alone, in nats per particle, where it was looked at."""

    def state_dict(self) -> dict[str, Any]:
        """The table of poses, what amplitudes are relative to, and how many latents are drawn and why."""
        return {
            "particles": self.table.state_dict(),
            "given": self.given,
            "typical": self.typical,
            "from_templates": self.from_templates,
            "draws": self.draws,
            "evidence": self.evidence,
            "trials": None if self.trials is None else asdict(self.trials),
            "noise_until": self.noise_until,
            "unsettled_epochs": self.unsettled_epochs,
            "searches": sorted(self.searches),
            "templates": self.templates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Objective`."""
        self.table = ParticleTable(**state["particles"])
        self.given, self.typical = state["given"], state["typical"]
        self.draws, self.evidence = state["draws"], state["evidence"]
        self.from_templates = state["from_templates"]
        self.trials = None if state["trials"] is None else LatentTrials(**state["trials"])
        self.searches = frozenset(state["searches"])
        self.templates = state.get("templates", self.model.anchors.clone()).to(self.device)
        self.noise_until, self.unsettled_epochs = state["noise_until"], state["unsettled_epochs"]

    @property
    def remark(self) -> str:
        """See `Objective`."""
        remarks = []
        if self.from_templates:
            remarks.append(
                "particles differ as views do: training began from templates made of single particles, not from one consensus"
            )
        if self.model.config.z_dim is None:
            tried = self.trials.story if self.trials else []
            why = "".join(f"; held-out particles gain {gain:.2f} nats by {size}" for size, gain in tried)
            remarks.append(f"{self.model.z_dim} latent coordinate(s) found{why} (--z-dim)")
        if self.config.draws is None and self.draws != DRAWS:
            remarks.append(
                f"a particle says little, {self.evidence:.1f} nats more than noise: {self.draws} latents were drawn for each in a step "
                f"(--draws), {DRAWS} are the rule"
            )
        return "; ".join(remarks)

    # ------------------------------------------------------------------------------------------------------ epochs

    @torch.no_grad()
    def begin_epoch(self, epoch: int) -> None:
        """Find the consensus before the first epoch; then anchors, steps of the grids, and poses from everywhere."""
        rows = self.rows
        some = np.random.default_rng([self.config.seed, epoch]).permutation(rows)
        if epoch == 0:
            self._first_consensus(some)
        if self.from_templates:
            self.z_delay = 0
        frozen = epoch <= self.z_delay and not self.from_templates
        searched = epoch in self.searches or epoch % SEARCH_EVERY == 0
        if epoch > self.z_delay and searched:
            self.model.anchors = self._anchors(some[:ANCHOR_PARTICLES], epoch)
        if epoch == 0 or (epoch > self.z_delay and searched):
            self.templates = self.model.anchors.clone()
        if self.model.scale != "none" and epoch > 0:
            self.update_scales(rows)
        if self.z_delay < epoch < self.noise_until:
            self._look_at_noise(some[:NOISE_PARTICLES])
        if epoch > 0 or self.given:
            self._set_steps(some[:256], frozen=frozen)
        unknown = rows[self.unset[rows]] if self.given else rows
        if searched and len(unknown):
            self._search_globally(unknown, frozen=frozen, known=epoch > 0)
        if searched and self.model.search.fixed and epoch > self.z_delay:
            self._search_latents(rows)
        if epoch == self.z_delay and self.config.draws is None:
            self._choose_draws(some[:EVIDENCE_PARTICLES])

    def _choose_draws(self, rows: Rows) -> None:
        """Many latents where the consensus alone explains little."""
        total = 0.0
        for part in self._parts(rows):
            observation = self._observe(part)
            known = self.model.decoder(self.z(part))
            total += float(self.model.search.local_search(observation, self.poses(part), known).log_evidence.sum())
        self.evidence = total / len(rows)
        self.draws = MANY_DRAWS if self.evidence < LITTLE_EVIDENCE else DRAWS

    def _first_consensus(self, rows: Rows) -> None:
        some = rows[~self.unset[rows]][:CONSENSUS_PARTICLES]
        observation = self._observe(some)
        if self.given:
            reference = self.model.wiener_mean(observation, self.poses(some))
        else:
            reference = find_consensus(self.model, observation, self.config.seed, self.workers.each)
        self.model.search.set_steps(reference[None], self.model.mean_information(observation))
        if self.model.search.rotate and not self.model.search.fixed:
            self._look_for_templates(rows, reference)
        if not self.from_templates:
            self._begin_trials()
            self.model.decoder.start_from(reference, torch.Generator().manual_seed(self.config.seed))

    def _look_for_templates(self, rows: Rows, consensus: Tensor) -> None:
        """Group particles that look alike into templates; what these say decides on the number of latents and on how training starts.

        Training starts from templates where they explain particles that were not used for them far better than one consensus does.
        """
        judges = rows[-max(1, min(JUDGES, len(rows) // 5)) :]
        learners = rows[: min(TEMPLATE_PARTICLES, len(rows) - len(judges))]
        if template_count(len(learners)) and not self.given:
            generator = torch.Generator().manual_seed(self.config.seed)
            self.from_templates = start_from_templates(
                self.model, self._observe(learners), self._observe(judges), consensus, generator, self.workers.each
            )

    # ----------------------------------------------------------------------------------- number of latent coordinates

    def _begin_trials(self) -> None:
        """Start with one latent coordinate, and add more later; where there is no time for that take all of them, or a fixed number, at once."""
        given = self.model.config.z_dim is not None
        epochs = self.config.epochs or self.config.max_epochs
        if epochs < FEWEST_EPOCHS or not (given or self.config.holdout):
            self._set_z_dim(self.model.z_dim if given else min(FALLBACK_LATENTS, self.model.z_dim))
            return
        if self.model.z_dim == 1:
            return
        self.trials = LatentTrials(most=self.model.z_dim, epochs=epochs, given=given)
        self.unsettled_epochs = NEVER
        self._set_z_dim(self.trials.size)

    def _set_z_dim(self, z_dim: int) -> None:
        """Go on with so many latent coordinates: surplus ones are taken out, new ones change nothing yet."""
        if z_dim != self.model.z_dim:
            self.model.resize_latents(z_dim, torch.Generator().manual_seed(self.config.seed))
            self.table = self.table.with_latents(z_dim)
            self.templates = resized_latents(self.templates, z_dim)

    @torch.no_grad()
    def finish_epoch(
        self, epoch: int, judges: Rows, bound: Callable[[], NDArray[np.float64]], held_out: float = math.nan
    ) -> bool:
        """See `Objective`: the number of latent coordinates may change."""
        trials = self.trials
        if trials is None:
            return False
        if epoch >= self.noise_until and not math.isnan(held_out):
            trials.watch(held_out)
        if not trials.due(epoch):
            return False
        if trials.given:
            trials.kept = trials.size
        elif not len(judges):
            trials.over = True
            return False
        if trials.size > trials.kept:
            new = bound()
            networks, table, templates = self.model.networks, self.table, self.templates
            self._set_z_dim(trials.kept)
            if trials.judge(new - bound(), float(new.mean())):
                self.model.networks, self.table, self.templates = networks, table, templates
        if not trials.over:
            trials.begin(epoch)
        if not trials.over:
            self._set_z_dim(trials.size)
            self.searches |= {epoch + TRIAL_SEARCH}
            return True
        self.unsettled_epochs = epoch
        if trials.kept > 1:
            self._unfold_latents(epoch)
        return True

    @torch.no_grad()
    def _unfold_latents(self, epoch: int) -> None:
        """Lay z out anew by how what it stands for is related, and go on with networks that have learned that, and the poses that are known by now.

        Coordinates that came one after the other may map particles in folds, a snake that fills a plane: they explain the particles, but do not
        show how these are related.
        """
        model, table = self.model, self.table
        z, poses = table.z.to(self.device), Poses(table.theta_rad.to(self.device), table.shift_px.to(self.device))
        some = np.random.default_rng([self.config.seed, epoch]).permutation(self.rows)[:GAUGE_PARTICLES]
        index = torch.from_numpy(some)
        if not model.search.fixed:
            model.fix_gauge(z[index])
            poses = model.gauge.into_common(poses, z)
        landmarks = z[index[:LANDMARKS]]
        images = model.upright(model.decoder(landmarks), model.gauge(landmarks))
        places = torch.from_numpy(unfolded(images.cpu().numpy(), model.z_dim)).to(images)
        model.set_z_dim(model.z_dim, self.config.seed)
        generator = torch.Generator().manual_seed(self.config.seed)
        teach_decoder(model, places, images, torch.ones(len(places)), generator)
        nearest = KDTree(landmarks.cpu().numpy()).query(table.z.numpy())[1]
        self.table = replace(
            table,
            theta_rad=poses.theta_rad.cpu(),
            shift_px=poses.shift_px.cpu(),
            z=places.cpu()[torch.from_numpy(nearest)],
        )
        self.templates = self._anchors(some[:ANCHOR_PARTICLES], epoch)
        # The noise was measured with other coordinates: what these explain may have been part of it.
        self.noise_until = self.unsettled_epochs = epoch + NOISE_EPOCHS
        self.searches |= {epoch + after for after in SEARCH_EPOCHS if after}

    def _set_steps(self, rows: Rows, *, frozen: bool) -> None:
        observation = self._observe(rows)
        z = self.z(rows)
        references = self.model.decoder(torch.zeros_like(z) if frozen else z)
        self.model.search.set_steps(references, self.model.mean_information(observation))

    @torch.no_grad()
    def fix_gauge(self, mask: NDArray[np.float32] | None) -> tuple[float, float] | None:
        """Fit the model's gauge to latents as some particles have them; what is left for others (degrees, px).

        Fixed poses stay as they are: nothing is fitted.
        """
        some = np.random.default_rng(self.config.seed).permutation(self.rows)
        others = some[GAUGE_PARTICLES : GAUGE_PARTICLES + ANCHOR_PARTICLES]
        others, some = others if len(others) else some, some[:GAUGE_PARTICLES]
        self.model.anchors = self._anchors(some[:ANCHOR_PARTICLES], self.config.seed)
        if self.model.search.fixed:
            return None
        weights = None if mask is None else torch.from_numpy(mask).to(self.device)
        self.model.fix_gauge(self.z(some), weights, common=not self.from_templates)
        return self.model.gauge_residual(self.z(others), weights)

    @torch.no_grad()
    def gain_by_angles(self, rows: Rows) -> Tensor | None:
        """See `Objective`.

        Fitted to noise, what is drawn beyond the average makes particles that were not trained on less likely: the mean over them is above 0
        only where there is something to be seen that turns.
        """
        model = self.model
        if model.search.fixed or not model.search.rotate:
            return None
        round_only = (model.basis.order == 0).repeat(2)
        gains = []
        for part in self._parts(rows):
            observation, poses, drawn = self._observe(part), self.poses(part), model.decoder(self.z(part))
            whole, average = (
                model.search.evidence_at_all_angles(observation, poses, image) for image in (drawn, drawn * round_only)
            )
            gains.append((whole - average).cpu())
        return torch.cat(gains)

    def _anchors(self, rows: Rows, seed: int) -> Tensor:
        """Search templates by what some particles look like; latents [J, z_dim]."""
        z = self.z(rows)
        return (
            z[:1].clone()
            if (z == z[:1]).all()
            else search_templates(z, self.model.decoder(z), self.config.anchors, seed)
        )

    def _search_globally(self, rows: Rows, *, frozen: bool, known: bool) -> None:
        """Poses from all shifts and angles; where some are ``known`` already, those that explain the image better stay.

        Of known ones a part is searched first, and the others only where that was worth it: where poses have settled, a search of a large stack
        finds nothing and takes several times as long as an epoch.
        """
        first = rows[:0]
        if known and len(rows) > 2 * SEARCH_FIRST:
            # Of those that no step has seen since z is free (a large stack is seen in parts) a search would find what the next step finds anyway.
            visited = rows[(self.table.z[torch.from_numpy(rows)] != 0).any(1).numpy()]
            among = visited if len(visited) >= SEARCH_FIRST else rows
            first = np.sort(np.random.default_rng(self.config.seed).permutation(among)[:SEARCH_FIRST])
            if not self._search_some(first, frozen=frozen, known=True):
                return
        self._search_some(np.setdiff1d(rows, first), frozen=frozen, known=known)

    def _search_some(self, rows: Rows, *, frozen: bool, known: bool) -> bool:
        """`_search_globally` of all these particles; whether what it found was worth it."""
        model = self.model
        templates = torch.zeros_like(model.anchors[:1]) if frozen else model.anchors

        @torch.no_grad()
        def look(part: Rows) -> tuple[Refined, Tensor]:
            observation = self._observe(part)
            poses, z, _ = model.inference.search_globally(
                observation, templates, model.search_radius_px, freeze_z=frozen
            )
            found = model.inference.refine(observation, poses[:, 0], z[:, 0], freeze_z=frozen, fine=False)
            if not known:
                return found, torch.zeros_like(found.log_evidence)
            before = model.inference.refine(observation, self.poses(part), self.z(part), freeze_z=frozen, fine=False)
            return found.better_of(before), (found.log_evidence - before.log_evidence).clamp(min=0)

        parts = list(self._parts(rows))
        own, sums = self.ranks.share(parts), []
        for part, (found, gain) in zip(own, self.workers.each(look, own), strict=True):
            self._keep(part, found)
            of_part = (found.near.shift_square, gain, (gain > BETTER_NATS).float(), found.log_evidence)
            sums.append(tuple(float(values.sum()) for values in of_part))
        self.share(own)
        square, gain, better, evidence = np.sum(self.ranks.in_order(sums, len(parts)), 0) / len(rows)
        if model.search.translate and self.learn_shift_prior and not self.given:
            model.search.shift_sd_px.fill_(max(math.sqrt(square / 2), LEAST_SHIFT_SD_PX))
        return bool(better > WORTH_SHARE or gain > WORTH_GAIN * abs(evidence))

    def _search_latents(self, rows: Rows) -> None:
        """The best z at the poses of the table, wherever it is."""
        model = self.model
        for part in self._parts(rows):
            observation, poses = self._observe(part), self.poses(part)
            _, z, evidence = model.inference.known(observation, poses, model.anchors, self.z(part))
            near = model.search.local_search(observation, poses, model.decoder(z[:, 0]))
            self._keep(part, Refined(near, z[:, 0], evidence[:, 0]))

    def _look_at_noise(self, rows: Rows) -> None:
        """Noise power from what the model leaves unexplained.

        With z and poses as likely as any, not with the best ones: these explain a part of the noise, the more of it the more coordinates z has,
        and noise that is taken for too weak lets them explain still more.
        """
        model = self.model

        @torch.no_grad()
        def unexplained(part: tuple[int, Rows]) -> Batch:
            number, rows = part
            generator = torch.Generator().manual_seed(self.config.seed + number)
            batch, scale = self.load(rows), self._scale(rows)
            z, poses = model.sample_posterior(self._observe(rows), self.poses(rows), self.z(rows), generator)
            drawn = model.drawn(z, poses, batch)
            drawn = drawn if scale is None else scale[:, None, None] * drawn
            return Batch(batch.images - drawn[:, None], batch.group, batch.ctf_power).to("cpu")

        parts = list(enumerate(self._parts(rows)))
        residuals = self.ranks.in_order(self.workers.each(unexplained, self.ranks.share(parts)), len(parts))
        noise = model.residual_noise([batch.to(self.device) for batch in residuals])
        # What is left of the signal early on is not noise: there is none of it outside the particles.
        model.spectra.set_noise(noise.clamp(min=LEAST_NOISE).minimum(model.spectra.outside))
