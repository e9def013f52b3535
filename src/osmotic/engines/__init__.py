"""Engines: where clients run. Only an engine knows about threads, processes or networks."""
