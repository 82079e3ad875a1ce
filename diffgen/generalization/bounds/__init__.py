"""Lower bounds on the mutual information of samples and training set; their closed forms."""
