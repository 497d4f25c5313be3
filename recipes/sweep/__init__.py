"""Many runs of one configuration: a grid of values and seeds, trained, resumed and compared."""
