"""Drop-ins for the losses of other projects, and metrics, callbacks and evaluators in the manner of trainers."""
