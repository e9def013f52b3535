"""What a run left behind, made readable: pictures, plots, one HTML page, the model card, comparisons."""
