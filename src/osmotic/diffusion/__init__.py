"""The diffusion process: schedules, targets, loss, samplers, spaces, the average of weights; names are free of torch."""
