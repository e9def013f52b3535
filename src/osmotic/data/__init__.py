"""Images and who holds them: sources, partitions over clients, and the split written to disk.

Nothing in here imports torch, and nothing heavy is imported before a source or a partition is asked for.
"""
