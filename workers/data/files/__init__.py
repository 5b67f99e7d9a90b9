"""Files of a dataset and its splits: by names, in folders, in manifests, by links."""
