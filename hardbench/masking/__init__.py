"""What predictions still tell about the labels when only some channels of a layer are left: masks, products, mutual information."""
