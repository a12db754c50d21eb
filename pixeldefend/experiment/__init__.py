"""Everything with effects: data, devices, training, files, runs and their modes."""
