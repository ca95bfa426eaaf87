"""One YAML file per dataset, and `spec.py`, the model they must satisfy. Adding a dataset is adding a YAML."""
