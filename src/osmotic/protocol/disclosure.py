"""What stands in the headers of packets beside the tensors, entry by entry, in words for a site that decides whether to join.

A test holds every packet of a run of every preset against these tables, so that no entry can be added silently. They are
small JSON values, which `osmotic plan` and the ledger do not count.
"""

from __future__ import annotations

# Of a task, to the site.
TO_SITE: dict[str, str] = {
    "contract": "a hash of network, process and data shape, which the site checks against its own",
    "run": "the run's id, which the answer says again",
    "client": "the name of the site that is asked, which it checks against its own",
    "action": "what is asked: train, sample, model, keep-model, feature-sums or kernel-distance",
    "phase": "name of the phase",
    "server_round": "number of the round",
    "counted_round": "the last round in which this site's answer counted: the state that it goes on from",
    "counted_state": "the hash of that state, as this site told it, so that no other is gone on from",
    "durable_round": "the oldest round that the server may go back to: states before it may be deleted",
    "learning_rate": "step size of this round",
    "local_epochs": "passes over the site's images, where a piece changes them",
    "round_images": "how many images all clients of the phase train on together, repeats counted: the clock of averages over rounds",
    "down": "which parts of the network follow, and which earlier ones they build on, or the hash of the initial weights that the site draws itself",
    "held": "which parts are not sent again because they have not moved",
    "extras": "whether tensors of pieces or codecs follow",
    "returns": "the parts whose change is asked for",
    "keep": "the parts that stay at the site after this step",
    "coded": "names of further tensors that the site is to write with the codec",
    "control": "small values for the pieces; for scores how many images to draw, their classes, seed and guidance, or the hash of the feature network, and whether the images held out are meant",
}

# Of an answer, from the site.
FROM_SITE: dict[str, str] = {
    "contract": "as in the task: what the answer belongs to",
    "run": "as in the task",
    "phase": "as in the task",
    "server_round": "as in the task",
    "client": "the site's own name",
    "num_examples": "how many training images the site holds",
    "metrics": "figures of the step, below",
    "first_contact": "beside a failure: that the initial weights drawn there are not the server's, and have to be sent",
    "failure": "instead of an answer: its kind, and one line without values of the data (an unexpected error tells the name of its Python class alone)",
}

# Under `metrics` of an answer.
METRICS: dict[str, str] = {
    "loss": "mean training loss over the site's images",
    "images": "images in the optimiser steps taken, repeats counted",
    "steps": "optimiser steps taken",
    "state_sha256": "a hash of the private state that the site keeps, by which a changed or lost state is told",
    "kept_pass": "with its own model, of which pass of fine-tuning that is the mean, best on images that the site holds out",
    "nfe": "evaluations of the network per image drawn",
}
