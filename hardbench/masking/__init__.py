"""Mutual information of labels and predictions when only some channels of a layer are kept: masks, convolutions, information."""
