"""Training classifiers on Ray Train, from the catalogue and the decode path of the audits."""
