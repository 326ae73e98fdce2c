"""Training classifiers, from the catalogue and the decode path of the audits."""
