"""`headcount embed` and `headcount search`: photos and faces of `data_prep`, networks and galleries of `dist_train`."""
