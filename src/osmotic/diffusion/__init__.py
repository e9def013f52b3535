"""The diffusion process: noise schedules, targets, loss, samplers and the average of weights; `facts` is free of torch."""
