"""`stagecoach doctor`: is this cluster, with these settings, fit to train? Every line is a fact, a verdict and what to do."""
