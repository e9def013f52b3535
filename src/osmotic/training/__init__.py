"""Learning on one machine: images on the device, the one training loop, optimisers, weights in and out of a network."""
