"""The commands `headcount embed` and `headcount search`: `data_prep`'s photos with `dist_train`'s networks."""
