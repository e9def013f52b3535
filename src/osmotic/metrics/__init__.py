"""How good the images are: one encoder of features, then one score per file (design.md, section 9)."""
