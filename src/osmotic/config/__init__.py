"""The configuration: keys, sections, presets. Reading one is `osmotic.runs.resolve`."""
