"""The server: the round loop, readable from top to bottom in labelled steps.

    1 choose -> 2 post -> 3 collect (gate, fold) -> 4 change -> 5 apply -> 6 after -> 7 commit -> 8 score -> 9 book

A phase counts as a whole or not at all: until step 7 nothing has moved that a checkpoint holds, so that a killed or
stopped phase is simply done again. Steps 7 and 9 alone hold Ctrl-C back. A phase that was stopped while it was being
scored has counted: its checkpoint says so, and the score is taken when the run goes on.

Next on the reader's path: `methods/fedavg.py`.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from osmotic.config.schema import to_dict
from osmotic.diffusion.sampler import NotFinite
from osmotic.errors import ConfigError, RunStopped
from osmotic.federation import bookkeeping, extension, feature_sums, ledger, own_models
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.bookkeeping import Outcome, Tally
from osmotic.federation.client import keeps_state
from osmotic.federation.exchange import Exchange
from osmotic.federation.feature_sums import Wanted
from osmotic.federation.interfaces import Engine, Observer, Scorer, Trainer, Unscored
from osmotic.federation.interrupts import Interrupts
from osmotic.federation.journal import Journal
from osmotic.federation.lab import ServerLab
from osmotic.federation.state import ServerState
from osmotic.flat import Flat
from osmotic.protocol.aggregate import Accumulator
from osmotic.protocol.messages import MERGE, SCORING, TRAIN, Client, Phase, Reply, Task, contract_hash
from osmotic.protocol.participation import choose, score_due
from osmotic.protocol.view import View
from osmotic.storage import checkpoint, lock
from osmotic.storage.beside import Beside
from osmotic.storage.folder import RunDir
from osmotic.storage.shelf import Shelf
from osmotic.tensors import Tensors, group


class Server:
    """Loop of one run; what it knows between two phases is `state`.

    Args:
        blueprint: network, process, exchange, pieces, codecs.
        engine: where clients run.
        run: the folder that logs and checkpoints go to.
        initial: weights at round 0, name -> float32 [...].
        contract: hash that every packet carries and every client checks.
        flops_per_image: training cost of one image, for the ledger.
        scorer, trainer, observer: who stands beside the server (`interfaces.py`); no scorer where images are out of reach.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        engine: Engine,
        run: RunDir,
        *,
        initial: Flat,
        contract: str,
        flops_per_image: int,
        scorer: Scorer | None,
        trainer: Trainer,
        observer: Observer,
    ) -> None:
        self.blueprint, self.config, self.engine, self.run_dir = blueprint, blueprint.config, engine, run
        self.contract = contract
        self.run_id = run.run_id or lock.fresh_id()
        self.scorer, self.trainer, self.observer = scorer, trainer, observer
        self.method, self.chain = blueprint.method(), blueprint.chain()
        self.layout, self.part_names = blueprint.layout, blueprint.part_names
        self.phases = self.chain.phases(self.method, self.config.training.rounds)
        self._clients_keep = keeps_state(blueprint, self.chain)
        self.clients: list[Client] = []
        # Actions that sites have said beforehand that they decline -> their names: what nobody asks for is no failure.
        self.withheld: Mapping[str, Collection[str]] = {}
        self.kept_passes: Mapping[str, int] = {}  # client -> pass of its fine-tuning that its own model is of
        start = View(self.config, self.layout, self.part_names)
        self.state = ServerState.initial(blueprint, initial, self.chain.server_start(start))
        self.exchange = Exchange(
            blueprint, self.state, engine, contract, self.run_id, flops_per_image, observer
        )
        self.journal, self.shelf = Journal(run.journal), Shelf(run.shelf)
        self.interrupts = Interrupts()
        self._saving: Beside[Callable[[], None]] = Beside()
        self._committed: dict[str, Any] | None = None  # logs and failures before the score
        self._clock = time.perf_counter()

    # --- the loop ---

    def run(self) -> None:
        """All phases that are not yet done. KeyboardInterrupt leaves a checkpoint of everything that has counted."""
        interrupts, state = self.interrupts, self.state
        with interrupts.installed():
            self.clients = self.engine.clients(1, 0.0)
            if not checkpoint.steps(self.run_dir.checkpoints):
                self.save()  # also a run stopped before its first round can be resumed
            try:
                if state.pending is not None:
                    self._committed = self._written()
                    self._finish(self.phases[state.step - 1], time.perf_counter())
                while state.step < len(self.phases):
                    phase = self.phases[state.step]
                    # Anew for every phase: sites may come and go.
                    self.clients = self.engine.clients(1, self.config.engine.deadline_seconds)
                    self.observer.phase_started(phase, state.step, len(self.phases))
                    self._phase(phase)
                # Here, and not with the last checkpoint: a run that died in the middle of it has no phase to go through again.
                self.journal.clear()
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):  # it is tried again
                    self._saved()
                if (
                    state.pending or state.step not in checkpoint.steps(self.run_dir.checkpoints)
                ) and not interrupts.torn:
                    self.save()
                raise
            finally:
                # The last act in the folder: whoever has called gives its lock back.
                self._saved()

    def _phase(self, phase: Phase) -> None:
        started = time.perf_counter()
        try:
            outcome = self._work(phase)
        except BaseException:
            self._abandon()
            raise
        with self.interrupts.held():
            self.state.pending = self._commit(outcome)
            self._committed = self._written()
        self._finish(phase, started)

    def _work(self, phase: Phase) -> Outcome:
        """Steps 1 to 6: everything that may be stopped, or thrown away without a quorum."""
        state, tally = self.state, Tally()

        # 1. Choose who takes part.
        chosen = choose(self.config, phase, self.clients)
        view = self._view()

        # 2. Post: one task per client, all made before the first reply, so that they cannot depend on its arrival.
        codec_weights, version = state.up.begin(phase.server_round, refresh=phase.name not in SCORING)
        if codec_weights:
            state.down.adopt(codec_weights, version)
        tasks = [
            self.chain.extend(view, state.pieces, phase, task)
            for task in self.method.tasks(view, phase, chosen)
        ]

        # 3. Collect: every reply goes through the gate and is folded, then dropped.
        # Range and weight bound the sum before a reply is seen, so its scale depends on no reply.
        images = max(1, sum(c.num_examples for c in chosen))  # 1 where nobody is asked, and nothing is summed
        total = Accumulator(images, self.config.training.max_abs_update)
        gathered: dict[str, Any] = {}

        if self.chain.works_after:
            self.journal.begin(phase.server_round)

        def fold(reply: Reply) -> None:
            if phase.name == TRAIN:
                self.method.fold(total, reply)
            self.chain.gather(view, gathered, reply)
            state.up.observe(reply.task.client.name, reply.tensors)

        self._ask_all(phase, tasks, tally, total, fold, partial(self.chain.object_to, view, phase))
        state.down.release()
        if tally.asked and not (tally.answers or state.counted or state.failures or tally.draw_otherwise):
            # A bug in a hook, say, fails everybody, and hours more would end in the untrained network.
            name = min(tally.failures, default="nobody")
            told = tally.failures[name].reason if name in tally.failures else "no answer came"
            where = f"the first phase, {phase.name} {phase.server_round}"
            raise RunStopped(f"no client came through {where}: {name}: {told}")
        if not self._quorum(tally):
            if phase.server_round < 1:
                # What came is in the journal: when the run goes on, only the others are asked again.
                reason = next((f"; {n}: {tally.failures[n].reason}" for n in sorted(tally.failures)), "")
                raise RunStopped(
                    f"phase {phase.name}, which the rounds build on, has no quorum: {len(tally.answers)} of {len(tally.asked)} clients came through{reason}"
                )
            return Outcome(phase, tally, False, state.weights, state.pieces)

        # 4. Change: the mean of the replies, bent by the server's pieces.
        change: Iterable[tuple[str, np.ndarray]] = self.method.mean(total)
        pieces = state.pieces
        metrics: dict[str, float] = {}
        if self.chain.pieces:
            bent, pieces, metrics = self.chain.change(view, pieces, gathered, phase, dict(change))
            change = bent.items()

        # 5. Apply it. Without pieces the mean comes tensor by tensor, each sum given up as it is taken.
        weights, moved = state.weights.copy(), set()
        for name, step in change:
            np.add(weights[name], step, out=weights[name])
            moved.add(name)

        # 6. After: what the pieces train or draw on the server.
        lab = ServerLab(view, phase, dict(weights), self.trainer, self.journal, self.shelf)
        pieces, more = self.chain.after(lab, pieces, phase)
        if lab.steps:
            weights, moved = Flat.of(weights.layout, lab.weights), set(weights)
            if not np.isfinite(weights.buffer).all():
                rule = f"gives weights that are not finite in {phase.name} {phase.server_round}: a smaller learning rate, or other images"
                raise ConfigError("training on the server", None, f"{rule}; the run stays as it was before")
        elif self.method.server_trains and phase.name == TRAIN:
            raise RunStopped(
                f"nobody is asked in round {phase.server_round}, and the server has nothing to train on"
            )
        if lab.steps or lab.drawn:
            cost = lab.images * self.exchange.flops_per_image + lab.drawn * self.trainer.flops_per_drawn
            tally.entries.append(bookkeeping.server_entry(phase, lab.images, lab.steps, cost))
        own = lab.images if self.method.server_trains else 0
        return Outcome(phase, tally, True, weights, pieces, moved, lab.steps, {**metrics, **more}, own)

    def _ask_all(
        self,
        phase: Phase,
        tasks: Sequence[Task],
        tally: Tally,
        total: Accumulator,
        fold: Callable[[Reply], None],
        vet: Callable[[Reply], str | None],
    ) -> None:
        """The tasks of a phase, posted and answered; before the rounds those who draw other initial weights once more."""
        journal = self.journal if self.chain.works_after else None
        weights = self.state.scored_weights() if phase.published else None

        def ask(some: Sequence[Task]) -> None:
            posted = self.exchange.post(phase, some, tally, weights)
            self.exchange.collect(phase, posted, tally, total, fold, vet, journal)

        ask(tasks)
        if phase.server_round < 1 and tally.draw_otherwise:
            # In the rounds such a client is sent the weights in the next; this phase has no next.
            self.state.down.draws_otherwise |= tally.forgotten(set(tally.draw_otherwise))
            ask([task for task in tasks if task.client.name in tally.draw_otherwise])

    def _commit(self, outcome: Outcome) -> dict[str, Any]:
        """Step 7. The phase counts: only here does anything move that the next phase builds on. Returns its metrics line."""
        state, phase, tally = self.state, outcome.phase, outcome.tally
        old, state.weights = state.weights, outcome.weights
        if tally.draw_otherwise:
            # Not only where the phase counts: a phase in which nobody draws as the server does must not come again for ever.
            state.down.draws_otherwise |= tally.draw_otherwise
            told = ", ".join(sorted(tally.draw_otherwise))
            warnings.warn(
                f"first contact: {told}: initial weights drawn there differ: sent from now on", stacklevel=2
            )
        if outcome.quorum:
            state.pieces = outcome.pieces
            state.server_steps += outcome.server_steps
            for part, names in self.part_names.items():
                if not outcome.moved.isdisjoint(names):
                    state.changed[part] = phase.server_round
            # What is published is not what later packets build on.
            heard = {} if phase.published else {n: tally.asked[n].send for n in tally.answers}
            state.down.commit(heard, phase.server_round)
            state.up.commit(tally.answers)
            for name in sorted(tally.answers):
                state.counted[name] = phase.server_round
                if digest := tally.answers[name].get("state_sha256"):
                    state.state_hashes[name] = str(digest)
                else:  # an older one is not that of this round
                    state.state_hashes.pop(name, None)
            self._average(phase, tally, outcome.server_images)
        else:
            self._abandon()
        self._book(tally, phase, outcome.quorum)
        state.step += 1
        return bookkeeping.line(
            phase,
            tally,
            state.totals,
            quorum=outcome.quorum,
            update_norm=bookkeeping.distance(state.weights, old) if self.method.global_model else None,
            learning_rate=max((self.exchange.rate(phase, t) for t in tally.asked.values()), default=None),
            metrics=outcome.metrics,
        )

    def _average(self, phase: Phase, tally: Tally, server_images: int) -> None:
        """Takes the weights of a round into their averages over rounds."""
        images = server_images + sum(int(m.get("images", 0)) for m in tally.answers.values())
        if phase.name == TRAIN and self.method.shared and images:
            # Only what the server averages: personal parts have their own averages at their clients.
            self.state.ema.update(self.state.weights.parts(self.method.shared), images)

    def _finish(self, phase: Phase, started: float) -> None:
        """Steps 8 and 9: the score, if one is due, and the line that closes the phase."""
        state = self.state
        unscored, quality, latest = None, None, state.last_quality
        if score_due(self.config, self.phases, state.step - 1) and self.scorer is None:
            unscored = "images are at their sites"
        elif score_due(self.config, self.phases, state.step - 1):
            try:
                quality, latest = self._score(phase)
            except (NotFinite, Unscored) as error:
                # The round has counted, and later ones may mend what this one broke: the run goes on, and says it.
                unscored, latest = str(error), None
                warnings.warn(
                    f"round {phase.server_round} is not scored: {error}; the run goes on", stacklevel=2
                )
        with self.interrupts.held():
            assert state.pending is not None
            seconds = round(time.perf_counter() - started, 3)
            line = state.pending | {"wall_seconds": seconds, "quality": quality, "unscored": unscored}
            state.last_quality, state.pending = latest, None
            self.run_dir.append("metrics", [line])
            try:
                self.observer.phase_done(line)
            except Exception:  # it ends the run, and costs it nothing: the phase has counted
                self.save()
                raise
            last = state.step == len(self.phases)
            # A phase beside the rounds may be all the work of a client: it is not gone through again for a few checkpoints less.
            whole = self.chain.works_after and phase.name != TRAIN
            if last or whole or state.step % self.config.checkpoint.every == 0:
                # A client may delete what no checkpoint on disk asks for: where there is such, the next round must know it.
                self.save(beside=not last and not whole and not self._clients_keep)

    def _abandon(self) -> None:
        """Forgets what the answers of a phase that does not count have left in the links."""
        self.state.up.abandon()
        self.state.down.abandon()

    def _view(self) -> View:
        """The server as exchanges and pieces see it in this phase."""
        s = self.state
        return View(
            self.config,
            self.layout,
            self.part_names,
            tuple(self.clients),
            s.counted,
            s.changed,
            s.weights,
            self.blueprint.image_shape,
            self.blueprint.spec.num_classes,
        )

    def _quorum(self, tally: Tally) -> bool:
        """Whether enough clients, and enough images, stand behind this phase; one that asks nobody always counts."""
        training = self.config.training
        enough = len(tally.weights) >= min(training.quorum_clients, len(tally.asked))
        return enough and tally.share() >= training.quorum_weight

    def _book(self, tally: Tally, phase: Phase, quorum: bool) -> None:
        """Adds a phase to ledger, totals and failures."""
        if not quorum:
            tally.entries = [bookkeeping.without_quorum(e) for e in tally.entries]
        self.state.totals.add(tally.entries)
        self.state.failures += tally.failed(phase)
        self.run_dir.append_text("ledger", ledger.lines(tally.entries))

    # --- scores, and models of the clients' own ---

    def _score(self, phase: Phase) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scores the models that there are after this phase: (for the metrics line, for the summary)."""
        state, own_phase = self.state, phase.name not in (TRAIN, MERGE)
        assert self.scorer is not None
        if (wanted := self.scorer.sums_wanted()) is not None:
            # At every score, though images do not change: a run that goes on then has the ledger of an unbroken one.
            found = (
                feature_sums.gather(self._ask, wanted, phase, held_out=held_out) for held_out in (False, True)
            )
            self.scorer.take_sums(*found)
        if self.method.global_model and not (self.chain.personal and own_phase):
            quality = self.scorer.score_global(state.scored_weights(), phase.server_round)
            latest = quality = self._with_distances(quality, wanted, phase)
        else:
            quality = own_models.score(
                self._ask,
                self.scorer,
                [c for c in self._trained() if c.name not in self.withheld.get("sample", ())],
                int(self.config.score.samples),
                phase,
                self.method.shared,
                state.scored_weights(),
                self.blueprint.image_shape,
            )
            latest = quality = self._with_distances(quality, wanted, phase)
            if (
                self.method.global_model
            ):  # a piece left every client a model of its own, beside the global one
                own = {k: quality.get(k) for k in ("mean", "weighted", "worst", "per_client")}
                latest = {**(state.last_quality or {}), "personal": own}
            elif phase.name == MERGE and state.last_quality is not None:
                latest = self.scorer.with_after(state.last_quality, quality)
        return {k: v for k, v in quality.items() if k != "per_client"}, latest

    def _with_distances(self, quality: dict[str, Any], wanted: Wanted | None, phase: Phase) -> dict[str, Any]:
        """A score, and what only sites can add to it."""
        assert self.scorer is not None
        if wanted is None or not (made := self.scorer.distances_wanted()):
            return quality
        found = feature_sums.distances(self._ask, wanted.encoder, made, wanted.clients, phase)
        return self.scorer.with_distances(quality, found)

    def personal_models(self, book: bool = True) -> dict[str, Tensors]:
        """The clients' own models as scored: client -> name -> float32 [...]; {} where they have none. `kept_passes` are those of them.

        Args:
            book: whether traffic and failures are written down; not where a finished run is only looked at.
        """
        if self.method.global_model and not self.chain.personal:
            return {}
        # A round of its own in the ledger, above all phases.
        number = self.phases[-1].server_round + 1
        ask, keeping = partial(self._ask, book=book), self.withheld.get(own_models.GIVE, ())
        own, self.kept_passes = own_models.fetch(ask, self._trained(), self.layout, number, keeping)
        return own

    def _trained(self) -> list[Client]:
        """The clients that have a model of their own: who has trained in a round, or came through the phase that was to leave one."""
        left = max((phase.server_round for phase in self.phases if phase.published), default=1)
        return [
            c for c in self.clients if c.name in self.state.counted and self.state.counted[c.name] >= left
        ]

    def _ask(
        self,
        phase: Phase,
        tasks: Sequence[Task],
        accept: Callable[[Reply], None],
        weights: Mapping[str, np.ndarray] | None,
        book: bool = True,
    ) -> None:
        """A question beside the phases, which changes nothing that counts; its traffic and failures are booked."""
        tally = Tally()
        try:
            posted = self.exchange.post(phase, tasks, tally, weights)
            self.exchange.collect(phase, posted, tally, None, accept)
        finally:
            self._abandon()  # no client keeps what it was sent for it
        if book:
            with self.interrupts.held():
                self._book(tally, phase, True)

    # --- the checkpoint ---

    def save(self, beside: bool = False) -> None:
        """Writes the state after the last whole phase, atomically.

        Args:
            beside: only begins it, and leaves it to the next call, or to the end of the run, to wait for it.
        Raises: OSError as the file system gives it, for the one before too; older checkpoints are then untouched.
        """
        self._saved()
        state = self.state
        state.wall_seconds += time.perf_counter() - self._clock
        self._clock = time.perf_counter()
        tensors, notes = state.to_checkpoint()
        notes |= {
            "run": self.run_id,
            "contract": self.contract,
            "config": to_dict(self.config),
            "versions": extension.versions(),
            **self._written(),
        }
        if state.pending and self._committed:
            notes |= self._committed  # stopped while it was being scored: the score will be taken again
        step, counted = state.step, dict(state.counted)
        write = checkpoint.prepared(
            self.run_dir.checkpoints, step, tensors, notes, self.config.checkpoint.keep
        )

        def known(left: list[int]) -> None:
            found = {**self.exchange.checkpoints, step: counted}
            self.exchange.checkpoints = {s: c for s, c in found.items() if s in left}

        self._saving.begin(lambda: partial(known, write()))
        if not beside:
            self._saved()

    def _saved(self) -> None:
        """Waits for the checkpoint that is being written; only then does it count. Raises: OSError as `save`."""
        if known := self._saving.wait():
            known()

    def _written(self) -> dict[str, Any]:
        """How far the logs and the list of failures have come."""
        files, hashes = self.run_dir.sizes(), self.run_dir.hashes()
        return {"files": files, "files_sha256": hashes, "failures": list(self.state.failures)}

    def restore(self, agreed: Callable[[], None] = lambda: None) -> None:
        """Goes back to the newest whole checkpoint that this run can go on from, and cuts the run's files back to it.

        Args:
            agreed: called once all was found in order, before anything is changed.
        Raises: ConfigError for another network, process, image shape or configuration; for logs that were altered; and
            where checkpoints are gone that there have been.
        """
        folder, run = self.run_dir.checkpoints, self.run_dir
        if not checkpoint.steps(folder) and not checkpoint.damaged(folder):
            # The first checkpoint is written before the first line of any log.
            if run.summary.exists() or any(run.sizes().values()):
                rule = (
                    "its checkpoints are gone, and its logs are not: put them back, or start anew elsewhere"
                )
                raise ConfigError(str(run.path), None, rule)
            agreed()
            return  # stopped before its first checkpoint: nothing was trained yet
        step, tensors, notes = checkpoint.load_latest(folder, usable=self._leads_on, run_id=run.run_id)
        # Earlier versions did not name the layout of the buffer, which follows from the rest.
        before = {k: v for k, v in self.blueprint.contract().items() if k != "layout"}
        if notes["contract"] not in (self.contract, contract_hash(before)):
            raise ConfigError(
                str(self.run_dir.path),
                None,
                "was started with another network, process or image shape; nothing was changed",
            )
        if notes["versions"] != extension.versions():
            warnings.warn(
                f"resumed with {extension.versions()}, begun with {notes['versions']}: bits may differ",
                stacklevel=2,
            )
        # Before anything is changed. `get`: of earlier versions.
        run.check(notes["files"], notes.get("files_sha256"))
        if step < len(self.phases):
            for sha256 in self.chain.shelved(group(tensors, "pieces")):
                self.shelf.take(sha256)
        agreed()
        self.state.from_checkpoint(step, tensors, notes)
        if step < len(self.phases):
            run.reopen(self.phases[step - 1].server_round if step else self.phases[0].server_round - 1)
        run.cut(notes["files"])
        self.run_id = self.exchange.run_id = run.run_id or notes.get("run") or self.run_id
        checkpoint.drop_after(folder, step)
        # A process that died after its last checkpoint has left one more than is kept, and no later one clears it away.
        checkpoint.drop_old(folder, self.config.checkpoint.keep)
        self.exchange.checkpoints = checkpoint.counted(folder, self.run_id)  # decides what clients may delete
        self._clock = time.perf_counter()

    def _leads_on(self, step: int, notes: Mapping[str, Any]) -> bool:
        """Whether this run can go on from a checkpoint. Raises ConfigError for a configuration that can go on from none."""
        begun = notes["config"]
        extension.check(begun, self.config, self.method, self.chain)
        return step <= extension.shared_phases(begun, self.config, self.method, self.chain)
