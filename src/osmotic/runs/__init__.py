"""A run as a whole: from a configuration to objects, the plan of its costs, its scores, its summary, the commands on it."""
