"""Photos with faces at known places: lists of them, drawings, and how well a detector finds them."""
