"""Average Hoyer, a module that `evaluate.load` takes by path."""
