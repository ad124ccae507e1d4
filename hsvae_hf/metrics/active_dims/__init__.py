"""Active dimensions, a module that `evaluate.load` takes by path."""
