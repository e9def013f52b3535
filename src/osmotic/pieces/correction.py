"""Correction: after the average the server trains on synthetic images that stand for everybody's.

Source: FedDDPM and FedDDPM+ (arXiv 2503.06426). There every client trains a model of its own first and uploads it, and
the server draws from it (`images = "upload"`). Departs from it by default: a site draws the images itself, drops
near-copies of its own, and sends images alone (`"site"`); or nobody trains alone, and the server draws from a global model
of the first rounds (`"federated"`). Sizes, steps and the rules of FedDDPM+ are ours: the paper's are not known.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from osmotic.config.keys import key
from osmotic.data.strata import apportion
from osmotic.errors import RunStopped
from osmotic.methods.base import Method
from osmotic.models.parts import PARTS
from osmotic.pieces import slow
from osmotic.pieces.base import Metrics, Piece, PieceError, Section
from osmotic.protocol.messages import TRAIN, Phase, Reply, Spec, Task
from osmotic.protocol.participation import batch_plan, learning_rate
from osmotic.protocol.view import Extension, Lab, Step, View
from osmotic.tensors import Tensors, group, grouped

if TYPE_CHECKING:
    from torch import Tensor

# A model of its own from fewer images than this can but repeat them.
LEAST_IMAGES = 10
LOCAL = "local"  # the phase before the rounds, in which every client trains a model of its own
# The local model is the average over about a tenth of its steps: a model at a full learning rate draws noisy images.
AVERAGED = 0.1


@dataclass
class Average:
    """A running average of a client's weights, [...] each, on the device, and the share of the old one kept per step."""

    parameters: list[Tensor]
    average: list[Tensor]
    keep: float


@dataclass(frozen=True, kw_only=True)
class Correction(Piece):
    """theta_r <- steps of the diffusion loss on synthetic images, from theta_{r-1} + the mean change."""

    section: ClassVar[Section] = "server"
    stateless: ClassVar[bool] = True
    server_copies: ClassVar[int] = 3  # weights and moments of its own training
    client_copies: ClassVar[int] = 1
    title: ClassVar[str] = "the server trains on synthetic images after the average"
    paper: ClassVar[str] = "2503.06426"
    left: ClassVar[str] = (
        "before the rounds images that a model trained on the site's images alone draws, their labels, and how many it dropped as near-copies; with images = upload "
        "that model itself, and how many images there are of each class; with images = federated nothing"
    )
    reveals: ClassVar[str] = (
        "a model trained at one site alone (not with images = federated) holds more of its images than an average does "
        "(arXiv 2301.13188 draws training images from diffusion models, the more the smaller their training set); images drawn from it "
        "can be near-copies, of which a site that draws itself drops those that it finds (drop_copies); their labels tell its classes. "
        "Whether an image was trained on a simple attack told, after 300 passes over 64 images, with AUC 0.93 from such a model, 0.80 from "
        "images that it drew, near-copies dropped or not, 0.82 from a change of weights of fedavg and 0.65 from its global model, where "
        "0.5 is guessing; after 30 passes with at most 0.59 (experiments/membership)"
    )

    images: Literal["site", "upload", "federated"] = key(
        "site",
        "where synthetic images come from: each site draws them from a model of its own, the server draws them from uploaded ones, "
        "or from the global model of the first rounds",
    )
    size: float = key(0.1, "synthetic images, as a share of all images", 0, 10, above=True)
    spread: Literal["size", "even"] = key(
        "size", "images of each client: by its number of images, or as many of each"
    )
    classes: Literal["own", "even"] = key(
        "own", "classes of a client's images: in its own mix, or as many of each class that it holds"
    )
    local_epochs: float = key(
        30.0, "passes over a client's images for a model of its own", 0, 10_000, above=True
    )
    drop_copies: bool = key(
        True, "a site drops near-copies of its own images before it sends any (images = site)"
    )
    drop_outliers: float = key(
        0.0,
        "share of the images that the server drops, those that stand most alone by the encoder of the scores",
        0,
        0.5,
    )
    when: Literal["always", "once", "slow"] = key(
        "always",
        "after every round (FedDDPM); once in the run, when learning has become slow; or whenever it has (FedDDPM+)",
    )
    rule: Literal["loss", "agreement"] = key(
        "loss", "what tells slow learning: the loss hardly falls, or clients hardly move the same way"
    )
    window: int = key(5, "rounds over which the loss must fall, and pause after a correction", 1, 10_000)
    least_gain: float = key(
        0.01, "learning is slow below this fall of the smoothed loss over the window", 0, 1
    )
    least_agreement: float = key(0.3, "learning is slow below |mean change| / mean |change|", 0, 1)
    passes: float = key(1.0, "passes over the synthetic images in a correction", 0, 10_000, above=True)
    rate: float = key(
        1.0, "learning rate of a correction, as a multiple of the clients' in that round", 0, 1000, above=True
    )
    batch_size: int = key(0, "images per step of a correction; 0 is training.batch_size", 0)
    skip_cleanest: float = key(
        0.0,
        "share of the noise levels, from the cleanest, that a correction leaves out: synthetic images have the classes and shapes "
        "of real ones sooner than their details",
        0,
        0.99,
    )
    draw_after: int = key(
        3, "rounds before the first images are drawn from the global model (images = federated)", 1, 1_000_000
    )
    redraw: int = key(
        0, "every so many rounds the images are drawn anew from the global model; 0 is never", 0, 1_000_000
    )

    def __post_init__(self) -> None:
        # An option without effect is refused: who sets it believes that it has one.
        idle = {"draw_after": "is of images = federated"} if self.images != "federated" else {}
        if self.images != "site":
            idle["drop_copies"] = "only sites know their own images: is of images = site"
        if self.images == "federated":
            idle |= dict.fromkeys(
                ("local_epochs", "spread", "classes"), "nobody trains alone with images = federated"
            )
        if self.when == "always":
            idle |= dict.fromkeys(
                ("rule", "window", "least_gain", "least_agreement"), "is of when = once or slow"
            )
        else:
            other = "least_agreement" if self.rule == "loss" else "least_gain"
            idle[other] = f"is not of rule = {self.rule}"
        defaults = {f.name: f.default for f in fields(Correction)}
        if odd := [name for name in idle if getattr(self, name) != defaults[name]]:
            raise ValueError(f"{odd[0]}: {idle[odd[0]]}: leave it out")

    @property
    def by_size(self) -> bool:
        """True where a site sends as many images as follow from its own."""
        return self.images == "site" and self.spread == "size"

    @property
    def draws_at_sites(self) -> bool:
        """True where sites draw, and send images alone."""
        return self.images == "site"

    @property
    def tells_classes(self) -> bool:
        """True where images are drawn in a site's own mix, or of a model that it uploads."""
        return self.images != "federated"

    @property
    def needs_encoder(self) -> bool:
        """True where outliers are dropped."""
        return self.drop_outliers > 0

    @property
    def least_images(self) -> int:
        """As many as a model of its own needs, where clients train one."""
        return 0 if self.images == "federated" else LEAST_IMAGES

    @property
    def holds_models(self) -> bool:
        """True where they are uploaded: until images are drawn of them."""
        return self.images == "upload"

    def misfit(self, method: Method) -> str | None:
        """None where clients train one global model, or the server alone does."""
        if method.pools_data:
            return "one trainer holds all images: there is nobody whose images are to be replaced"
        if not method.global_model:
            return "there is no global model that the server could train"
        if method.server_trains and self.images == "federated":
            return "no client trains in its rounds: images must be of site or upload"
        if method.server_trains and self.when != "always":
            return "no client trains in its rounds: when must be always"
        if not method.whole and self.when != "always" and self.rule == "agreement":
            return "each client returns a part, and such changes cannot agree: rule must be loss"
        return None

    def idle(self, rounds: int) -> str | None:
        """None where there is a round in which it can train on images that are there by then."""
        if self.images == "federated" and self.draw_after >= rounds:
            return f"images drawn after round {self.draw_after} of {rounds} are trained on in no round: draw_after must be smaller"
        if self.when != "always" and self.rule == "loss" and self.window >= rounds:
            return f"a window of {self.window} rounds never ends in {rounds}: window must be smaller"
        if self.redraw >= rounds:
            return f"nothing is drawn anew after {self.redraw} of {rounds} rounds: redraw must be smaller"
        return None

    # --- server: before the rounds ---
    def phases(self, rounds: int) -> Iterator[Phase]:
        """Phase 0 of the paper, for everybody; none where images are drawn from the global model."""
        if self.images != "federated":
            yield Phase(LOCAL, 0, everybody=True)

    def foreseen(self, view: View, phase: Phase) -> tuple[int, int]:
        """Without images drawn anew for near-copies, and without corrections that hang on how learning goes."""
        able = [c for c in view.clients if c.num_examples >= self.least_images]
        if phase.name == LOCAL:
            return 0, sum(self._samples(view, Task(client, "train")) for client in able)
        if phase.name != TRAIN:
            return 0, 0
        number, first = phase.server_round, self.draw_after if self.images == "federated" else 0
        samples = sum(self._samples(view, Task(client, "train")) for client in able)
        if self.images == "federated":
            samples = self._of_all(view)
        size = self.batch_size or view.config.training.batch_size
        trains = self.when == "always" and number > first
        # The first set of the global model, and those that take its place.
        again = bool(self.redraw) and number > first and (number - first) % self.redraw == 0
        draws = again or (self.images == "federated" and number == first)
        return batch_plan(samples, size, self.passes) if trains else 0, samples if draws else 0

    def _of_all(self, view: View) -> int:
        """Images of a set that is drawn from the global model, >= 1."""
        return max(1, round(self.size * sum(c.num_examples for c in view.clients)))

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Extension:
        """In phase 0: "images" uint8 [M, H, W, C], "labels" int64 [M], "count" int64 [2] (there are, near-copies dropped)
        wanted back; or the change of all weights, and "classes" int64 [classes].
        """
        if phase.name != LOCAL:
            return Extension()
        samples = self._samples(view, task)
        labelled = view.num_classes > 0
        if self.images == "upload":
            expects = {"classes": Spec((view.num_classes,), "int64")} if labelled else {}
            control = {"classes": view.num_classes}
            return Extension(expects=expects, returns=PARTS, local_epochs=self.local_epochs, control=control)
        # Of full length, whatever is dropped: what is sent is then known beforehand.
        expects = {"images": Spec((samples, *view.image_shape), "uint8"), "count": Spec((2,), "int64")}
        expects |= {"labels": Spec((samples,), "int64")} if labelled else {}
        return Extension(
            expects=expects,
            returns=(),
            local_epochs=self.local_epochs,
            control={"samples": samples, "classes": view.num_classes},
        )

    def _samples(self, view: View, task: Task) -> int:
        """Images of one client, >= 1."""
        everybody = sum(client.num_examples for client in view.clients)
        mine = task.client.num_examples if self.spread == "size" else everybody // max(1, len(view.clients))
        return max(1, round(self.size * mine))

    def object_to(self, view: View, phase: Phase, reply: Reply) -> str | None:
        """Refuses images that are blank, copies of one another or none, labels and counts that cannot be."""
        from osmotic.pieces.synthetic import ATTEMPTS, objection

        if phase.name != LOCAL:
            return None
        if self.images == "upload":
            classes = reply.tensors.get("classes")
            # One by one first: a sum of huge ones may wrap round.
            fits = classes is None or (
                classes.min() >= 0 and classes.max() <= reply.weight and 0 < classes.sum() <= reply.weight
            )
            return None if fits else "its images of each class are not its images"
        images, (kept, dropped) = reply.tensors["images"], map(int, reply.tensors["count"])
        if not (0 <= kept <= len(images) and 0 <= dropped <= ATTEMPTS * len(images)):
            return f"says that it sends {kept} of {len(images)} images and has dropped {dropped}"
        if not kept and dropped:
            return f"has no image to send: {dropped} near-copies of its own were dropped"
        labels = reply.tensors.get("labels")
        return objection(images[:kept], None if labels is None else labels[:kept], view.num_classes)

    def gather(self, view: View, gathered: dict[str, Any] | None, reply: Reply) -> dict[str, Any]:
        """By client: what it sent in phase 0, name -> array [...]; in a round what `slow.Report` holds."""
        name, found = reply.task.client.name, gathered or {}
        if not reply.task.control:  # `extend` gives one in phase 0 alone
            if self.when == "always":
                return found
            squares = (float(np.square(t, dtype=np.float64).sum()) for _, t in sorted(reply.change.items()))
            loss = float(reply.metrics.get("loss", 0.0))
            return {**found, name: slow.Report(reply.weight, loss, math.sqrt(sum(squares)))}
        own = {n: t.copy() for n, t in reply.tensors.items()}
        if self.images == "upload":
            # The client's own model: it was sent the weights of this phase exactly, as nobody had any before.
            own |= grouped("weights", {n: view.weights[n] + t for n, t in reply.change.items()})
        return {**found, name: own}

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        """The mean change as it is; what phase 0 brought, or whether learning is slow, goes into the state."""
        gathered = gathered or {}
        if phase.name == LOCAL:
            held = {f"{name}/{n}": t for name in sorted(gathered) for n, t in gathered[name].items()}
            return mean, grouped("client", held), {}
        if phase.name != TRAIN or self.when == "always" or not gathered:
            return mean, state, {}
        return mean, *self._watch(state, gathered, phase, mean)

    def _watch(
        self, state: Tensors, replies: Mapping[str, slow.Report], phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Metrics]:
        """The state with this round's figures, and "due" where it is to be corrected for being slow."""
        losses = slow.smoothed(state.get("losses", np.zeros(0)), replies)
        length = math.sqrt(sum(float(np.square(mean[n], dtype=np.float64).sum()) for n in sorted(mean)))
        agreed, fell = slow.agreement(replies, length), slow.gain(losses, self.window)
        figure, least = (fell, self.least_gain) if self.rule == "loss" else (agreed, self.least_agreement)
        fired = state.get("fired", np.zeros((0, 2)))
        rested = not len(fired) or (self.when == "slow" and phase.server_round - fired[-1, 0] > self.window)
        state = {**state, "losses": losses}
        state.pop("due", None)
        if figure is not None and figure < least and rested:
            state["due"] = np.array([phase.server_round, figure])
        found = {"smoothed_loss": float(losses[-1])}
        return state, found | ({} if agreed is None else {"agreement": agreed})

    # --- server: after the average ---
    def after(self, lab: Lab, state: Tensors, phase: Phase) -> tuple[Tensors, Metrics]:
        """Makes the set of images after phase 0, or draws it from the global model; trains on it where that is due."""
        if phase.name == LOCAL:
            return self._collected(lab, state)
        if phase.name != TRAIN:
            return state, {}
        metrics: Metrics = {}
        if "set" in state and (self.when == "always" or "due" in state):
            state, metrics = self._correct(lab, state, phase)
        if self._draws(state, phase):
            state, drawn = self._drawn(lab, state, phase)
            metrics |= drawn
        return state, metrics

    def _correct(self, lab: Lab, state: Tensors, phase: Phase) -> tuple[Tensors, Metrics]:
        """One correction."""
        training, held = lab.view.config.training, lab.shelf.take(_text(state["set"]))
        size = self.batch_size or training.batch_size
        steps = batch_plan(len(held["images"]), size, self.passes)
        rate = self.rate * learning_rate(training, phase.server_round)
        lab.train(held["images"], held.get("labels"), steps, rate, size, self.skip_cleanest)
        state = dict(state)
        if "due" in state:
            state["fired"] = np.concatenate([state.get("fired", np.zeros((0, 2))), [state.pop("due")]])
        return state, {"steps": float(steps)}

    def _collected(self, lab: Lab, state: Tensors) -> tuple[Tensors, Metrics]:
        """The set of what all clients brought, sorted by client."""
        brought = group(state, "client")
        names = sorted({name.partition("/")[0] for name in brought})
        parts, copies, useless = [], 0, 0
        numbers = {client.name: client.client_id for client in lab.view.clients}
        for name in names:
            own = group(brought, name)
            images, labels = self._drawn_from(lab, name, own) if self.images == "upload" else _sent(own)
            copies += int(own["count"][1]) if "count" in own else 0
            if images is None:
                useless += 1
                continue
            part = {"images": images, "client": np.full(len(images), numbers[name], np.int64)}
            parts.append(part if labels is None else part | {"labels": labels})
        if not parts:
            # Rounds without a set would be those of plain averaging.
            raise RunStopped(
                f"no client has given a synthetic image, and the rounds build on them; uploaded models that drew nothing of use: {useless}"
            )
        return self._kept(lab, parts, copies, useless, {})

    def _drawn_from(self, lab: Lab, name: str, own: Tensors) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Images of an uploaded model, None where they are of no use, and their labels."""
        from osmotic.diffusion.sampler import NotFinite
        from osmotic.pieces.synthetic import labels_for, objection

        client = next(c for c in lab.view.clients if c.name == name)
        samples = self._samples(lab.view, Task(client, "train"))
        labels = labels_for(samples, own.get("classes"), self.classes == "even")
        try:
            images = lab.sample(group(own, "weights"), labels, samples, name)
        except NotFinite:
            return None, labels
        return (None if objection(images, labels, lab.view.num_classes) else images), labels

    def _draws(self, state: Tensors, phase: Phase) -> bool:
        """Whether the set is drawn from the global model after this round."""
        since = int(state["drawn"][0]) if "drawn" in state else 0
        if "set" not in state:
            return self.images == "federated" and phase.server_round >= self.draw_after
        return bool(self.redraw) and phase.server_round - since >= self.redraw

    def _drawn(self, lab: Lab, state: Tensors, phase: Phase) -> tuple[Tensors, Metrics]:
        """The set drawn from the global model: of the classes of the first one, or as many of each.

        The state as it is, and so another try after the next round, where what the model draws is of no use.
        """
        from osmotic.diffusion.sampler import NotFinite
        from osmotic.pieces.synthetic import objection

        asked = state.get("asked")
        if asked is None:
            samples = self._of_all(lab.view)
            classes = max(1, lab.view.num_classes)
            asked = np.bincount(apportion(np.ones(classes, np.int64), samples), minlength=classes)
        labels = np.repeat(np.arange(len(asked)), asked) if lab.view.num_classes else None
        samples = int(asked.sum())
        try:
            images = lab.sample(lab.weights, labels, samples)
            useless = objection(images, labels, lab.view.num_classes)
        except NotFinite as error:
            useless = str(error)
        if useless:
            told = f"round {phase.server_round}: the global model gives no synthetic images: {useless}; it is asked again after the next round"
            warnings.warn(told, stacklevel=2)
            return state, {"useless": 1.0}
        part = {"images": images, "client": np.full(samples, -1, np.int64)}
        part |= {} if labels is None else {"labels": labels}
        copies, clients = (int(state["counts"][i]) for i in (1, 3)) if "counts" in state else (0, 0)
        found, _ = self._kept(lab, [part], copies, clients, state)
        return found | {"drawn": np.array([phase.server_round])}, {}

    def _kept(
        self, lab: Lab, parts: list[Tensors], copies: int, useless: int, state: Tensors
    ) -> tuple[Tensors, Metrics]:
        """The state with a new set in it, put on the shelf; outliers dropped."""
        from osmotic.pieces.synthetic import outliers

        whole = {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
        labels = whole.get("labels", np.zeros(len(whole["images"]), np.int64))
        asked = np.bincount(labels, minlength=max(1, lab.view.num_classes))
        alone = np.zeros(len(whole["images"]), bool)
        if self.drop_outliers:
            alone = outliers(lab.features(whole["images"]), self.drop_outliers)
            whole = {n: t[~alone] for n, t in whole.items()}
        counts = {
            "images": len(whole["images"]),
            "copies": copies,
            "outliers": int(alone.sum()),
            "useless": useless,
        }
        sha256 = lab.shelf.keep(whole)
        told = {"set": np.frombuffer(bytes.fromhex(sha256), np.uint8).copy()}
        told["counts"] = np.array(list(counts.values()), np.int64)
        told["asked"] = state.get("asked", asked)  # of later sets too, whatever was dropped of this one
        kept = {n: t for n, t in state.items() if not n.startswith("client/")}
        return kept | told, {n: float(v) for n, v in counts.items()}

    def shelved(self, state: Tensors) -> list[str]:
        """The set of images."""
        return [_text(state["set"])] if "set" in state else []

    def auxiliary(self, state: Tensors) -> dict[str, Any] | None:
        """What the summary says of the set, and in which rounds learning was found slow, with the figure that told it."""
        if "set" not in state:
            return None
        images, copies, alone, useless = map(int, state["counts"])
        return {
            "images": images,
            "filtered": copies + alone,
            "sha256": _text(state["set"]),
            "from": "global model" if "drawn" in state else self.images,
            "near_copies": copies,
            "outliers": alone,
            "useless_clients": useless,
            "corrected": [
                {"round": int(number), self.rule: round(float(figure), 6)}
                for number, figure in state.get("fired", ())
            ],
        }

    # --- client, before the rounds ---
    def client_begin(self, step: Step, state: Tensors) -> Average | None:
        """The average of the local model's weights; None in a round.

        Raises: PieceError for a client with too few images.
        """
        if step.phase != LOCAL:
            return None
        if (count := len(step.images)) < LEAST_IMAGES:
            rule = f"{count} images are too few for a model of its own; it needs {LEAST_IMAGES}"
            raise PieceError("correction", rule)
        steps = batch_plan(count, step.training.batch_size, self.local_epochs)
        own: list[Tensor] = list(step.parameters.values())
        return Average(own, [p.detach().clone() for p in own], 0.5 ** (1 / max(1.0, AVERAGED * steps)))

    def after_backward(self, step: Step, work: Average | None) -> None:
        """average <- keep average + (1 - keep) theta, each [...], in place: of the weights before this step."""
        if work is not None:
            _move(work)

    def client_end(self, step: Step, work: Average | None, state: Tensors) -> tuple[Tensors, Tensors]:
        """In phase 0 the averaged weights take the place of the last ones; images drawn of them, or classes, as `extend` says."""
        if work is None:
            return {}, state
        import torch

        from osmotic.pieces.synthetic import CopyFilter, drawn_without_copies, labels_for, own_images

        _move(work)
        with torch.no_grad():
            torch._foreach_copy_(work.parameters, work.average)
        counts = None
        if classes := int(step.control["classes"]):
            counts = np.bincount(step.images.labels.cpu().numpy(), minlength=classes)
        if self.images == "upload":
            return ({} if counts is None else {"classes": counts.astype(np.int64)}), state
        samples = int(step.control["samples"])
        labels = labels_for(samples, counts, self.classes == "even")
        copies = None
        if self.drop_copies:
            own = own_images(step.images)
            copies = CopyFilter(own, step.images.flip, step.images.space.prepare)
        seed = int(step.rng("correction").integers(2**62))
        assert step.draw is not None
        images, told, dropped = drawn_without_copies(step.draw, labels, samples, seed, copies)
        sent = {"images": _filled(images, samples), "count": np.array([len(images), dropped], np.int64)}
        return sent | ({} if told is None else {"labels": _filled(told, samples)}), state


def _move(work: Average) -> None:
    import torch

    with torch.no_grad():
        torch._foreach_lerp_(work.average, work.parameters, 1 - work.keep)


def _sent(own: Tensors) -> tuple[np.ndarray, np.ndarray | None]:
    """The images that a client has sent, and their labels."""
    kept, labels = int(own["count"][0]), own.get("labels")
    return own["images"][:kept], None if labels is None else labels[:kept]


def _filled(some: np.ndarray, length: int) -> np.ndarray:
    """Rows of zeros put to the end of [n, ...] until there are `length`."""
    return np.concatenate([some, np.zeros((length - len(some), *some.shape[1:]), some.dtype)])


def _text(sha256: np.ndarray) -> str:
    """A hash as hexadecimal digits, given as uint8 [32]."""
    return bytes(sha256).hex()
