"""Labels of datasets: values as files have them, classes and their names."""
